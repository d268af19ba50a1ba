"""Integer weights in parts: the parts are the integers, every part is in range, and oneDNN convolves them exactly.

What is right depends on the CPU (`pairs_saturate`); both ways are checked everywhere, by arithmetic, and run wherever
activations are small enough for either.
"""

import math

import numpy as np
import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qbw_eval.engine import packing
from qbw_eval.engine.packing import Split, integers_of, pack, pairs_saturate, split_weights, why_not_here

HERE = pytest.mark.skipif(why_not_here() is not None, reason=f"no integer convolutions here: {why_not_here()}")
SLOW = settings(max_examples=40, deadline=None)  # the machine may be busy


def integers(*values: int, window: int = 1) -> Tensor:
    """Return (len(values), window, 1, 1) weights: each value once, the rest of its window zeros."""
    found = torch.zeros(len(values), window, 1, 1, dtype=torch.int32)
    found[:, 0, 0, 0] = torch.tensor(values)
    return found


def put_together(split: Split) -> list[list[int]]:
    """Return the integers that a split stands for, one Python integer at a time."""
    rows = split.parts.flatten(1).tolist()
    high, low = rows[: split.outputs], rows[split.outputs :]
    if split.low_outputs == 0:
        assert low == []
        return high
    if split.low_outputs == 1:
        assert all(row == low[0] for row in low), "the same for all outputs, however often it is repeated"
        low = [low[0]] * split.outputs
    assert len(low) == split.outputs
    return [[split.factor * a + b for a, b in zip(*both, strict=True)] for both in zip(high, low, strict=True)]


# --- which splits there are -----------------------------------------------------------------------------------------


def slow_split(weights: list[int], largest: int, window: int, saturate: bool, groups: int) -> tuple[int, int] | None:
    """Return (low outputs, factor) by the rules as the module's first lines state them, in Python's own integers."""
    magnitude = max(map(abs, weights))
    if largest > 255 or largest * magnitude * window >= 2**31:
        return None

    def convolves(parts: list[int]) -> bool:
        in_int8 = all(-128 <= part <= 127 for part in parts)
        # The engine uses -128 only where nothing saturates.
        pairs = all(2 * largest * abs(part) < 2**15 and abs(part) <= 127 for part in parts)
        return in_int8 and (pairs or not saturate)

    if convolves(weights):
        return 0, 1
    if groups > 1:
        return None
    if not saturate and all(w % 2 for w in weights) and magnitude <= 255:
        return 1, 2
    high = [math.floor((w + 8) / 16) for w in weights]
    low = [w - 16 * h for w, h in zip(weights, high, strict=True)]
    return (len(weights), 16) if convolves([*high, *low]) and -128 not in high else None


@pytest.mark.parametrize("saturate", [True, False], ids=["pairs saturate", "they do not"])
@pytest.mark.parametrize("largest", [1, 3, 7, 15, 31, 63, 127, 129, 200, 255])
def test_each_weight_is_split_as_the_rules_say_and_the_parts_are_the_weight(largest: int, saturate: bool) -> None:
    kinds = set()
    for weight in [*range(-300, 301), *(sign * w for sign in (-1, 1) for w in (1023, 1024, 2031, 2039, 2040, 2048))]:
        for groups in (1, 2):
            split = split_weights(integers(weight), largest, pairs_saturate=saturate, groups=groups)
            expected = slow_split([weight], largest, 1, saturate, groups)
            found = None if split is None else (split.low_outputs, split.factor)
            assert found == expected, (weight, groups)
            kinds.add(found)
            if split is not None:
                assert put_together(split) == [[weight]]
                assert split.parts.dtype == torch.int8
                if saturate:
                    assert 2 * largest * int(split.parts.int().abs().max()) < 2**15
    assert kinds >= ({None, (0, 1), (1, 16)} if saturate else {None, (0, 1), (1, 2), (1, 16)})


@SLOW
@given(
    st.lists(st.integers(-300, 300), min_size=1, max_size=6),
    st.integers(1, 255),
    st.booleans(),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_many_weights_are_split_together(
    weights: list[int], largest: int, saturate: bool, groups: int, odd: bool
) -> None:
    weights = [2 * (w // 2) + 1 if odd else w for w in weights]
    split = split_weights(integers(*weights), largest, pairs_saturate=saturate, groups=groups)
    expected = slow_split(weights, largest, 1, saturate, groups)
    assert (None if split is None else (split.low_outputs, split.factor)) == expected
    if split is not None:
        assert put_together(split) == [[w] for w in weights]


@pytest.mark.parametrize(
    ("largest", "weight", "window", "fits"),
    [
        (255, 127, 66_311, True),  # 255 * 127 * 66311 = 2**31 - 1913
        (255, 127, 66_312, False),
        (255, 255, 33_025, True),  # 255 * 255 * 33025 = 2**31 - 33023
        (255, 255, 33_026, False),
        (127, 1, 16_909_320, True),
        (127, 1, 16_909_321, False),  # 2**31 + 119
    ],
)
def test_a_window_whose_sum_could_leave_int32_is_refused(largest: int, weight: int, window: int, fits: bool) -> None:
    assert (largest * weight * window < 2**31) == fits
    for saturate in (True, False):
        for sign in (1, -1):
            wide = integers(sign * weight, window=1).expand(1, window, 1, 1)
            assert (split_weights(wide, largest, pairs_saturate=saturate) is not None) == fits


@pytest.mark.parametrize(
    ("largest", "most"),
    [(255, 64), (254, 64), (200, 81), (129, 127), (128, 127), (15, 127), (1, 127)],
)
def test_where_pairs_saturate_a_weight_stays_whole_up_to_a_bound(largest: int, most: int) -> None:
    """2 * 255 * 64 = 32640 fits into 16 bits, 2 * 255 * 65 = 33150 does not; 127 is int8's own bound."""
    for sign in (1, -1):
        whole = split_weights(integers(sign * most), largest, pairs_saturate=True)
        assert whole is not None
        assert whole.factor == 1
        split = split_weights(integers(sign * (most + 1)), largest, pairs_saturate=True)
        assert split is not None
        assert split.factor == 16


@pytest.mark.parametrize(
    ("weights", "largest", "saturate", "low_outputs", "factor"),
    [
        ([-255, -1, 1, 255], 255, False, 1, 2),  # DoReFa at 8 bits
        ([-255, -1, 1, 255], 255, True, 4, 16),
        ([-127, 127], 127, True, 0, 1),  # DoReFa at 7 bits
        ([-127, 127], 127, False, 0, 1),
        ([-128, 0, 127], 255, False, 0, 1),  # LSQ at 8 bits
        ([-128, 0, 127], 255, True, 3, 16),
        ([-64, 63], 127, True, 0, 1),  # LSQ at 7 bits
        ([-256, 2], 255, False, 2, 16),  # not odd
        ([-257, 257], 255, False, 2, 16),  # odd, and too wide for 2 * m + 1
    ],
)
def test_what_the_quantizers_make(
    weights: list[int], largest: int, saturate: bool, low_outputs: int, factor: int
) -> None:
    split = split_weights(integers(*weights), largest, pairs_saturate=saturate)
    assert split is not None
    assert (split.outputs, split.low_outputs, split.factor) == (len(weights), low_outputs, factor)


def test_activations_wider_than_uint8_are_refused() -> None:
    assert split_weights(integers(1), 255, pairs_saturate=False) is not None
    assert split_weights(integers(1), 256, pairs_saturate=False) is None


# --- integers of quantized weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_multiples_of_a_unit_are_found_in_float32s_own_rounding(bits: int) -> None:
    n = 2**bits - 1
    levels = np.arange(-n, n + 1, 2)
    for unit in (1 / n, 0.037 / n, 3e-9, 12345.678):
        weight = torch.from_numpy((levels * unit).astype(np.float32))
        found = integers_of(weight, unit)
        assert found is not None
        assert found.tolist() == levels.tolist()
        assert found.dtype == torch.int32


@pytest.mark.parametrize("odd_one", [0.5, 1.01, -2.999, math.nan, math.inf])
def test_what_is_no_multiple_is_none(odd_one: float) -> None:
    assert integers_of(torch.tensor([1.0, 2.0, -3.0]), 1.0) is not None
    assert integers_of(torch.tensor([1.0, 2.0, odd_one]), 1.0) is None


# --- convolving -----------------------------------------------------------------------------------------------------


class Geometry(nn.Conv2d):
    """What a convolution says of itself; it is never run."""


def expected_sums(x: Tensor, weights: Tensor, geometry: nn.Conv2d) -> np.ndarray:
    return references.conv2d(
        x.numpy().astype(np.float64),
        weights.numpy().astype(np.float64),
        stride=geometry.stride[0],
        padding=geometry.padding[0],  # type: ignore[arg-type]  # a number
        dilation=geometry.dilation[0],
        groups=geometry.groups,
    )


def sums_of(split: Split, x: Tensor, geometry: nn.Conv2d) -> np.ndarray:
    """Convolve with oneDNN and put the parts together, in float64 (whole numbers below 2**24 are float32's own)."""
    x = x.contiguous(memory_format=torch.channels_last)
    found = pack(split, x.shape, geometry).accumulators(x).double().numpy()
    assert np.abs(found).max() < 2**24, "or float32 would round, which is no fault of the convolution"
    high, low = found[:, : split.outputs], found[:, split.outputs : split.outputs + split.low_outputs]
    return high if split.low_outputs == 0 else split.factor * high + low


GEOMETRIES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1 stride 2": {"kernel_size": 1, "stride": 2},
    "dilated, stride 2": {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2},
    "5x5, more padding than needed": {"kernel_size": 5, "padding": 3},
    "2x2, none": {"kernel_size": 2},
}
EACH_GEOMETRY = pytest.mark.parametrize("geometry", list(GEOMETRIES.values()), ids=list(GEOMETRIES))


@HERE
@EACH_GEOMETRY
@pytest.mark.parametrize("saturate", [True, False], ids=["sixteenths", "halves and ones"])
def test_both_ways_of_splitting_convolve_exactly(geometry: dict[str, int], saturate: bool) -> None:
    """Odd integers up to 255, in parts; activations up to 127, so that even halves in int8 saturate no pair.

    2 * 127 * 128 = 32512 < 2**15. Sixteenths are meant for activations up to 255, and are run with them as well.
    """
    generator = torch.Generator().manual_seed(0)
    layer = Geometry(20, 24, bias=False, **geometry)
    shape = layer.weight.shape
    weights = (torch.randint(-128, 128, shape, generator=generator) * 2 + 1).int()
    weights[0], weights[1] = 255, -255  # the largest sums
    weights[2, ::2], weights[2, 1::2] = 255, -255
    for largest in (127, 255) if saturate or not pairs_saturate() else (127,):
        split = split_weights(weights, largest, pairs_saturate=saturate)
        assert split is not None
        assert (split.low_outputs, split.factor) == ((24, 16) if saturate else (1, 2))
        noise = torch.randint(0, largest + 1, (2, 20, 7, 6), generator=generator, dtype=torch.uint8)
        for x in (noise, torch.full_like(noise, largest), torch.zeros_like(noise)):
            np.testing.assert_array_equal(sums_of(split, x, layer), expected_sums(x, weights, layer))


@HERE
@pytest.mark.parametrize("channels", [3, 8, 16, 24])
def test_two_threads_convolve_exactly(channels: int) -> None:
    """Left to itself, oneDNN gives wrong sums with 8 and 24 channels, in some calls and on some CPUs."""
    generator = torch.Generator().manual_seed(0)
    layer = Geometry(channels, 64, kernel_size=1, stride=2, bias=False)
    weights = torch.randint(-7, 8, layer.weight.shape, generator=generator).int()
    split = split_weights(weights, 15, pairs_saturate=pairs_saturate())
    assert split is not None
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for height, width in ((4, 4), (8, 7), (16, 16)):
            for samples in (2, 3, 5):
                shape = (samples, channels, height, width)
                x = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
                expected = expected_sums(x, weights, layer)
                for _ in range(5):
                    np.testing.assert_array_equal(sums_of(split, x, layer), expected)
    finally:
        torch.set_num_threads(before)


@HERE
@pytest.mark.parametrize("groups", [2, 4, 8])
@EACH_GEOMETRY
def test_grouped_convolutions_are_exact_as_far_as_they_are_not_split(geometry: dict[str, int], groups: int) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = Geometry(8, 16, groups=groups, bias=False, **geometry)
    most = 64 if pairs_saturate() else 127
    weights = torch.randint(-most, most + 1, layer.weight.shape, generator=generator).int()
    weights[0], weights[1] = most, -most
    split = split_weights(weights, 255, pairs_saturate=pairs_saturate(), groups=groups)
    assert split is not None
    x = torch.randint(0, 256, (2, 8, 7, 7), generator=generator, dtype=torch.uint8)
    for images in (x, torch.full_like(x, 255)):
        np.testing.assert_array_equal(sums_of(split, images, layer), expected_sums(images, weights, layer))
    assert split_weights(weights * 3, 255, pairs_saturate=pairs_saturate(), groups=groups) is None


@HERE
@SLOW
@given(st.data())
def test_whatever_is_split_for_this_machine_convolves_exactly(data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 8))
    largest, widest = 2**bits - 1, data.draw(st.sampled_from([1, 3, 15, 64, 65, 127, 128, 255, 600]))
    inputs, outputs, kernel = (
        data.draw(st.integers(1, 40)),
        data.draw(st.integers(1, 20)),
        data.draw(st.integers(1, 3)),
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    layer = Geometry(
        *(inputs, outputs, kernel),
        stride=data.draw(st.integers(1, 2)),
        padding=data.draw(st.integers(0, 2)),
        bias=False,
    )
    weights = torch.randint(-widest, widest + 1, layer.weight.shape, generator=generator).int()
    split = split_weights(weights, largest, pairs_saturate=pairs_saturate())
    assert split is not None
    x = torch.randint(0, largest + 1, (data.draw(st.integers(1, 3)), inputs, 5, 4), generator=generator).byte()
    packed_for = data.draw(st.integers(1, 4), label="samples the weights were laid out for")
    images = x.contiguous(memory_format=torch.channels_last)
    found = pack(split, (packed_for, *x.shape[1:]), layer).accumulators(images).double().numpy()
    high, low = found[:, :outputs], found[:, outputs : outputs + split.low_outputs]
    np.testing.assert_array_equal(
        high * split.factor + low if split.low_outputs else high, expected_sums(x, weights, layer)
    )


@HERE
def test_scale_bias_and_relu_are_applied_in_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randint(-50, 51, (5, 6, 3, 3), generator=generator).int()
    split = split_weights(weights, 255, pairs_saturate=pairs_saturate())
    assert split is not None
    layer = Geometry(6, 5, 3, padding=1, bias=False)
    x = torch.randint(0, 256, (2, 6, 4, 5), generator=generator, dtype=torch.uint8)
    scale, bias = torch.tensor([0.01, -0.02, 1.0, 0.5, -3.0]), torch.tensor([0.0, 5.0, -7.5, 1e3, 0.1])
    convolution = pack(split, x.shape, layer)
    images = x.contiguous(memory_format=torch.channels_last)
    exact = expected_sums(x, weights, layer) * scale.double().numpy()[:, None, None]
    exact += bias.double().numpy()[:, None, None]
    for relu in (False, True):
        found = convolution(images, scale, bias, relu=relu)
        assert found.is_contiguous(memory_format=torch.channels_last)
        expected = np.maximum(exact, 0) if relu else exact
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=3e-7, atol=3e-7 * np.abs(exact).max())
    assert bool((exact < 0).any())


@HERE
def test_levels_are_rounded_half_to_even_and_clipped_at_both_ends() -> None:
    """Sums 0, 1, 2, ... halved and quartered: every second, or fourth, is a tie."""
    sums = torch.arange(256, dtype=torch.uint8)
    x = sums.view(1, 1, 16, 16).contiguous(memory_format=torch.channels_last)
    split = split_weights(integers(1, -1), 255, pairs_saturate=pairs_saturate())
    assert split is not None
    convolution = pack(split, x.shape)
    for factor, shift, largest in (
        (0.5, 0.0, 15),
        (0.25, 0.5, 31),
        (1.0, -100.0, 255),
        (0.125, 0.25, 3),
        (2.0, 0.0, 255),
    ):
        found = convolution.levels(x, torch.full((2,), factor), torch.full((2,), shift), largest)
        assert found.dtype == torch.uint8
        for output, sign in ((0, 1), (1, -1)):
            exact = sign * np.arange(256.0) * factor + shift  # float64 and float32 agree on these
            expected = np.minimum(np.maximum(np.rint(exact), 0), largest)
            np.testing.assert_array_equal(found[0, output].flatten().numpy(), expected)


@HERE
def test_a_size_is_that_of_the_parts() -> None:
    split = split_weights(integers(1, 2, 3, window=5), 255, pairs_saturate=True)
    assert split is not None
    assert pack(split, (1, 5, 2, 2)).size == 15


# --- where it is not trusted ----------------------------------------------------------------------------------------


def test_another_processor_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert why_not_here.__wrapped__() == "int8 convolutions are proven exact on x86-64 only, this is aarch64"


@pytest.mark.parametrize("saturate", [True, False])
def test_a_convolution_that_is_not_exact_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, saturate: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(packing, "_convolves_exactly", lambda _activation, _weight: False)
    monkeypatch.setattr(packing, "pairs_saturate", lambda: saturate)
    weight = 64 if saturate else 127
    assert why_not_here.__wrapped__() == f"oneDNN's int8 convolution of 255 and {weight} is not exact on this CPU"
