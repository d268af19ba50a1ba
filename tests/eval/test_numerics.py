"""Every quantizer against NumPy in float64, its truth table, its invariants and its gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray
from torch import Tensor

from qbw_eval.quantization import numerics

unhurried = settings(deadline=None, max_examples=60)  # a busy machine is no defect
Floats = NDArray[np.float64]

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
ROUNDED = BITS[:-1]
LSQ_BITS = BITS[1:]
EXTREMES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    5e-324,
    -5e-324,
    1e-308,
    1e-30,
    -1e-30,
    0.5,
    1e30,
    -1e30,
    1.7e308,
    math.inf,
    -math.inf,
]


def torch_tanh(w: Floats) -> Floats:
    return torch.tanh(torch.from_numpy(w)).numpy()


def tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def exactly_equal(ours: Tensor, expected: Floats) -> None:
    np.testing.assert_array_equal(ours.detach().numpy(), expected, strict=True)


def some_weights(seed: int = 0, count: int = 3000) -> Floats:
    """Random weights, many of them zero: tanh(0) / (2 max) + 1/2 times the odd n is an exact tie at every bitwidth."""
    generator = np.random.default_rng(seed)
    w = generator.normal(size=count) * generator.choice([0.02, 0.3, 3.0], size=count)
    w[::7] = 0.0
    return w


def some_activations(scale: float, n: int, seed: int = 0) -> Floats:
    """Random values around [0, scale], every tie (q + 1/2) / n * scale of up to 300 levels, and extremes."""
    generator = np.random.default_rng(seed)
    ties = (generator.choice(n, size=min(n, 300), replace=False) + 0.5) / n * scale
    return np.concatenate([generator.normal(size=2000) * scale, ties, -ties, EXTREMES])


def steps_and_values(bits: int, signed: bool) -> list[tuple[float, Floats]]:
    """Steps, and values for them: for the powers of two (q + 1/2) s is an exact tie."""
    generator = np.random.default_rng(bits)
    reach = 2.0 ** (bits - signed)
    levels = np.unique(generator.integers(-reach * signed - 3, reach + 3, size=400)).astype(float)
    return [
        (s, np.concatenate([generator.normal(size=1500) * s * reach, (levels + 0.5) * s, levels * s, EXTREMES]))
        for s in (0.25, 2.0**-20, 1.0, 0.1, 0.0371)
    ]


# --- the truth table ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "n", "weight", "activation"),
    [
        (1, 1, None, None),
        (2, 3, (-2, 1), (0, 3)),
        (3, 7, (-4, 3), (0, 7)),
        (4, 15, (-8, 7), (0, 15)),
        (5, 31, (-16, 15), (0, 31)),
        (6, 63, (-32, 31), (0, 63)),
        (7, 127, (-64, 63), (0, 127)),
        (8, 255, (-128, 127), (0, 255)),
        (16, 65535, (-32768, 32767), (0, 65535)),
        (31, 2147483647, (-1073741824, 1073741823), (0, 2147483647)),
    ],
)
def test_bits_give_these_integers(
    bits: int, n: int, weight: tuple[int, int] | None, activation: tuple[int, int] | None
) -> None:
    assert numerics.largest_integer(bits) == n
    if weight is not None:
        assert numerics.lsq_bounds(bits, signed=True) == weight
        assert numerics.lsq_bounds(bits, signed=False) == activation


def test_full_precision_is_called_32() -> None:
    assert numerics.FULL_PRECISION == 32


def test_rounding_is_half_to_even() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    assert numerics.round_straight_through(x).tolist() == [-2.0, -2.0, -0.0, 0.0, 2.0, 2.0, 4.0]


def test_two_bits_worked_by_hand() -> None:
    w = torch.atanh(torch.tensor([-0.8, -0.2, 0.0, 0.2, 0.8], dtype=torch.float64))
    # t n = 0, 1.125, 1.5, 1.875, 3, less 1e-8's share: the tie goes to the even 2
    torch.testing.assert_close(
        numerics.dorefa_weight(w, 2), torch.tensor([-1, -1 / 3, 1 / 3, 1 / 3, 1], dtype=torch.float64)
    )
    x = torch.tensor([-1.0, 0.1, 0.5, 0.9, 7.0], dtype=torch.float64)
    torch.testing.assert_close(numerics.dorefa_activation(x, 2), torch.tensor([0, 0, 2 / 3, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(
        numerics.pact_activation(x, torch.tensor(6.0, dtype=torch.float64), 2),
        torch.tensor([0, 0, 0, 0, 6], dtype=torch.float64),
    )
    assert numerics.lsq(x, torch.tensor(1.0), 2, signed=True).tolist() == [-1.0, 0.0, 0.0, 1.0, 1.0]
    assert numerics.lsq(x, torch.tensor(1.0), 2, signed=False).tolist() == [0.0, 0.0, 0.0, 1.0, 3.0]


# --- float64: exactly NumPy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_dorefa_weights_are_exactly_numpys_given_the_same_tanh(bits: int) -> None:
    tiny = np.array([1e-8, -3e-9, 7e-9, 1e-9])  # where the formula's 1e-8 decides
    for w in (some_weights(), np.array(EXTREMES), np.zeros((3, 2)), np.array([[-0.7]]), np.array([5e-324]), tiny):
        exactly_equal(numerics.dorefa_weight(tensor(w), bits), references.dorefa_weight(w, bits, torch_tanh))


@pytest.mark.parametrize("bits", ROUNDED)
@pytest.mark.parametrize("name", ["dorefa_weight", "dorefa_scaled_weight"])
def test_dorefa_weights_are_numpys_with_its_own_tanh_but_for_the_last_place(name: str, bits: int) -> None:
    w = np.concatenate([some_weights(1), [40.0, -40.0, 1e-30, 5e-324]])
    n = 2**bits - 1
    scale = 1.0 if name == "dorefa_weight" else float(np.abs(w).mean())
    before = getattr(references, f"{name}_before_rounding")(w, bits)
    expected = getattr(references, name)(w, bits)
    ours = getattr(numerics, name)(tensor(w), bits).numpy()
    levels = np.rint((ours / scale + 1) / 2 * n)
    near_tie = np.abs(before - np.floor(before) - 0.5) < 1e-12 + 4 * np.finfo(float).eps * n
    assert near_tie.sum() >= len(w) // 7  # the zeros: at least those were there to be got wrong
    np.testing.assert_array_equal(levels[~near_tie], np.rint(before)[~near_tie])
    np.testing.assert_allclose(ours[~near_tie], expected[~near_tie], rtol=0, atol=1e-12 * scale)
    zeros = w == 0  # exact ties are no matter of the last place: tanh(0) is 0 everywhere
    np.testing.assert_array_equal(levels[zeros], np.rint(n / 2))


@pytest.mark.parametrize("bits", BITS)
def test_scaled_dorefa_weights_are_numpys_given_the_same_tanh(bits: int) -> None:
    for w in (some_weights(2), np.zeros((2, 5)), np.array([0.3]), np.array([1e-300, -3e-300]), np.array([1e200, -1.0])):
        ours = numerics.dorefa_scaled_weight(tensor(w), bits).numpy()
        # The mean is a sum of many, whose last place depends on the order.
        np.testing.assert_allclose(ours, references.dorefa_scaled_weight(w, bits, torch_tanh), rtol=1e-13, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_dorefa_activations_are_exactly_numpys(bits: int) -> None:
    x = some_activations(1.0, 2 ** min(bits, 16) - 1)
    exactly_equal(numerics.dorefa_activation(tensor(x), bits), references.dorefa_activation(x, bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("alpha", [1.0, 8.0, 0.3, 2.0**-30, 6.123456])
def test_pact_activations_are_exactly_numpys(bits: int, alpha: float) -> None:
    x = np.append(some_activations(alpha, 2 ** min(bits, 16) - 1), alpha)
    ours = numerics.pact_activation(tensor(x), torch.tensor(alpha, dtype=torch.float64), bits)
    exactly_equal(ours, references.pact_activation(x, alpha, bits))


@pytest.mark.parametrize("bits", LSQ_BITS)
@pytest.mark.parametrize("signed", [True, False], ids=["weight", "activation"])
def test_lsq_is_exactly_numpys(bits: int, signed: bool) -> None:
    with np.errstate(over="ignore"):  # 1.7e308 / s is infinite, and clipped
        for step, x in steps_and_values(min(bits, 16), signed):
            ours = numerics.lsq(tensor(x), torch.tensor(step, dtype=torch.float64), bits, signed)
            exactly_equal(ours, references.lsq(x, step, bits, signed))


def test_ties_are_there_to_be_got_wrong() -> None:
    x = np.clip(some_activations(1.0, 15), 0, 1) * 15
    assert (x - np.floor(x) == 0.5).sum() > 10
    for step, values in steps_and_values(4, signed=True)[:3]:
        v = values[np.abs(values) < 1e20] / step
        assert (v - np.floor(v) == 0.5).sum() > 10


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero_point", [0.0, 0.5, 2.0, -1.25, 100.3])
def test_lsq_plus_is_exactly_numpys(bits: int, zero_point: float) -> None:
    with np.errstate(over="ignore"):  # 1.7e308 / s is infinite, and clipped
        for step, x in steps_and_values(min(bits, 16), signed=True):
            s, z = (torch.tensor(value, dtype=torch.float64) for value in (step, zero_point))
            exactly_equal(numerics.lsq_plus(tensor(x), s, z, bits), references.lsq_plus(x, step, zero_point, bits))


@pytest.mark.parametrize("signed", [True, False], ids=["weight", "activation"])
def test_with_a_whole_zero_point_lsq_plus_has_lsqs_levels(signed: bool) -> None:
    x = tensor(np.random.default_rng(0).normal(size=2000) * 3)
    step = torch.tensor(0.25, dtype=torch.float64)  # a power of two: sums with whole numbers are exact
    for bits in (2, 4, 8):
        zero_point = torch.tensor(2.0 ** (bits - 1) if signed else 0.0, dtype=torch.float64)
        ties = (x / step).frac().abs() == 0.5
        ours, lsqs = numerics.lsq_plus(x, step, zero_point, bits), numerics.lsq(x, step, bits, signed)
        assert torch.equal(ours[~ties], lsqs[~ties])


@pytest.mark.parametrize("bits", BITS)
def test_nan_stays_nan(bits: int) -> None:
    x, one = torch.tensor([math.nan, 0.3]), torch.tensor(1.0)
    quantized = [numerics.dorefa_activation(x, bits), numerics.pact_activation(x, one, bits)]
    quantized += [numerics.lsq(x, one, bits, signed) for signed in (True, False)] if bits > 1 else []
    quantized += [numerics.lsq_plus(x, one, one / 3, bits)]
    assert all(values[0].isnan() and not values[1].isnan() for values in quantized)
    assert numerics.dorefa_weight(x, bits)[0].isnan()
    assert numerics.dorefa_scaled_weight(x, bits)[0].isnan()


# --- float32: float64's levels but for near ties --------------------------------------------------------------------


def count_level_differences(name: str, bits: int) -> tuple[int, int]:
    """Return (levels of float32 that are not float64's, levels compared), each difference checked to be a near tie."""
    generator = np.random.default_rng(bits)
    x32 = torch.from_numpy(generator.normal(size=20_000).astype(np.float32))
    x32[::50] = 0
    x = x32.double().numpy()
    n = 2**bits - 1
    match name:
        case "dorefa_weight" | "dorefa_scaled_weight":
            before = getattr(references, f"{name}_before_rounding")(x, bits)
            scale = 1.0 if name == "dorefa_weight" else float(np.abs(x).mean())
            levels = np.rint((getattr(numerics, name)(x32, bits).double().numpy() / scale + 1) / 2 * n)
        case "dorefa_activation":
            before = np.clip(x, 0, 1) * n
            levels = np.rint(numerics.dorefa_activation(x32, bits).double().numpy() * n)
        case "pact":
            alpha = np.float32(1.7)
            before = np.clip(x, 0, alpha) * n / float(alpha)
            ours = numerics.pact_activation(x32, torch.tensor(alpha), bits).double().numpy()
            levels = np.rint(ours * n / float(alpha))
        case _:
            lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if name == "lsq_weight" else (0, n)
            step = np.float32(3 / n)
            before = np.clip(x / float(step), lowest, highest)
            ours = numerics.lsq(x32, torch.tensor(step), bits, signed=name == "lsq_weight").double().numpy()
            levels = np.rint(ours / float(step))
    differ = levels != np.rint(before)
    distance = np.abs(before - np.floor(before) - 0.5)
    # Some roundings of float32, each off by half of 1.2e-7 of at most n.
    assert (distance[differ] < 8 * np.finfo(np.float32).eps * n).all()
    return int(differ.sum()), differ.size


@pytest.mark.parametrize(
    "name", ["dorefa_weight", "dorefa_scaled_weight", "dorefa_activation", "pact", "lsq_weight", "lsq_activation"]
)
def test_float32_gives_float64s_levels_but_for_near_ties(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {}
    for bits in LSQ_BITS[:-1] if name.startswith("lsq") else ROUNDED:
        differ, compared = count_level_differences(name, bits)
        counts[bits] = differ
        assert differ <= compared * (0.0005 if bits <= 8 else 0.05)
    with capsys.disabled():
        print(f"\n{name}: float32 levels that differ from float64's, of 20000 per bitwidth, all near ties: {counts}")


# --- invariants -----------------------------------------------------------------------------------------------------

finite = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 5e-324, 1e-30, 0.5, 1.0])
arrays = st_numpy.arrays(np.float64, st.integers(1, 300), elements=finite)
bitwidths = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8])
lsq_bitwidths = st.sampled_from([2, 3, 4, 5, 6, 7, 8])
scales = st.floats(1e-6, 1e3)
ZERO_POINT = 1.4
QUANTIZERS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "dorefa_weight": lambda x, _scale, bits: numerics.dorefa_weight(x, bits),
    "dorefa_scaled_weight": lambda x, _scale, bits: numerics.dorefa_scaled_weight(x, bits),
    "dorefa_activation": lambda x, _scale, bits: numerics.dorefa_activation(x, bits),
    "pact": lambda x, scale, bits: numerics.pact_activation(x, torch.tensor(scale, dtype=torch.float64), bits),
    "lsq_weight": lambda x, scale, bits: numerics.lsq(x, torch.tensor(scale, dtype=torch.float64), bits, True),
    "lsq_activation": lambda x, scale, bits: numerics.lsq(x, torch.tensor(scale, dtype=torch.float64), bits, False),
    "lsq_plus": lambda x, scale, bits: numerics.lsq_plus(
        x, torch.tensor(scale, dtype=torch.float64), torch.tensor(ZERO_POINT, dtype=torch.float64), bits
    ),
}
any_quantizer = pytest.mark.parametrize("name", QUANTIZERS)


@any_quantizer
@unhurried
@given(x=arrays, scale=scales, bits=lsq_bitwidths)
def test_k_bits_have_at_most_2_to_the_k_values(name: str, x: Floats, scale: float, bits: int) -> None:
    assert len(QUANTIZERS[name](tensor(x), scale, bits).unique()) <= 2**bits


@any_quantizer
@unhurried
@given(x=arrays, scale=scales, bits=lsq_bitwidths)
def test_every_quantizer_is_monotonic(name: str, x: Floats, scale: float, bits: int) -> None:
    quantized = QUANTIZERS[name](tensor(np.sort(x)), scale, bits)
    assert (quantized.diff() >= 0).all()


@unhurried
@given(w=arrays, bits=bitwidths)
def test_dorefa_weights_are_odd_integers_over_n(w: Floats, bits: int) -> None:
    n = 2**bits - 1
    quantized = numerics.dorefa_weight(tensor(w), bits).numpy()
    integers = np.rint(quantized * n)
    np.testing.assert_allclose(quantized * n, integers, rtol=0, atol=1e-12 * n)
    assert (np.abs(integers) % 2 == 1).all()
    assert np.abs(integers).max() <= n


@unhurried
@given(x=arrays, scale=scales, bits=lsq_bitwidths)
def test_outputs_are_within_their_range(x: Floats, scale: float, bits: int) -> None:
    lowest, highest = (
        {name: QUANTIZERS[name](tensor(x), scale, bits).min().item() for name in QUANTIZERS},
        {name: QUANTIZERS[name](tensor(x), scale, bits).max().item() for name in QUANTIZERS},
    )
    mean, rounding = float(np.abs(x).mean()), 1 + 1e-12
    assert -1 <= lowest["dorefa_weight"] <= highest["dorefa_weight"] <= 1
    assert -mean * rounding <= lowest["dorefa_scaled_weight"] <= highest["dorefa_scaled_weight"] <= mean * rounding
    assert 0 <= lowest["dorefa_activation"] <= highest["dorefa_activation"] <= 1
    assert 0 <= lowest["pact"] <= highest["pact"] <= scale * rounding
    assert -scale * 2 ** (bits - 1) <= lowest["lsq_weight"] <= highest["lsq_weight"] <= scale * (2 ** (bits - 1) - 1)
    assert 0 <= lowest["lsq_activation"] <= highest["lsq_activation"] <= scale * (2**bits - 1)
    below, above = ZERO_POINT * scale * rounding, (2**bits - 1 - ZERO_POINT) * scale * rounding
    assert -below <= lowest["lsq_plus"] <= highest["lsq_plus"] <= above


@unhurried
@given(x=arrays, scale=scales)
def test_every_further_bit_tightens_the_bound_that_the_error_keeps(x: Floats, scale: float) -> None:
    clipped, kept = np.clip(x, 0, 1), np.clip(x, 0, scale)
    alpha = torch.tensor(scale, dtype=torch.float64)
    t = np.tanh(x)
    full = t / (np.abs(t).max() + 1e-8)
    bounds = []
    for bits in ROUNDED:
        bound = 0.5 / (2**bits - 1)
        bounds.append(bound)
        slack = 1e-12
        assert np.abs(numerics.dorefa_activation(tensor(x), bits).numpy() - clipped).max() <= bound + slack
        assert np.abs(numerics.pact_activation(tensor(x), alpha, bits).numpy() - kept).max() <= (bound + slack) * scale
        assert np.abs(numerics.dorefa_weight(tensor(x), bits).numpy() - full).max() <= 2 * bound + slack
        if bits > 1:  # at a fixed range: the step halves with every bit
            step = scale / (2**bits - 1)
            lsq = numerics.lsq(tensor(x), torch.tensor(step, dtype=torch.float64), bits, signed=False).numpy()
            assert np.abs(lsq - kept).max() <= (bound + slack) * scale
    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.parametrize("name", ["dorefa_activation", "lsq_weight", "lsq_activation"])
@unhurried
@given(x=arrays, scale=scales, bits=lsq_bitwidths)
def test_quantizing_twice_changes_nothing_more(name: str, x: Floats, scale: float, bits: int) -> None:
    once = QUANTIZERS[name](tensor(x), scale, bits)
    assert torch.equal(QUANTIZERS[name](once, scale, bits), once)


@any_quantizer
def test_shape_and_dtype_are_kept(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
        for bits in LSQ_BITS:
            quantized = QUANTIZERS[name](x, 0.5, bits)
            assert (quantized.shape, quantized.dtype) == (x.shape, dtype)


@pytest.mark.parametrize("name", ["dorefa_weight", "pact", "lsq_weight", "lsq_activation", "lsq_plus"])
def test_32_bits_is_the_very_tensor(name: str) -> None:
    x = torch.randn(5)
    assert QUANTIZERS[name](x, 0.5, 32) is x


# --- gradients ------------------------------------------------------------------------------------------------------


def leaf(values: Floats | float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def upstream(count: int) -> Tensor:
    """What arrives from above: different for every element, so that none can be taken for another."""
    return torch.linspace(0.5, 2.0, count, dtype=torch.float64)


@pytest.mark.parametrize("bits", ROUNDED)
def test_the_gradient_of_dorefa_activations_stops_where_they_clip(bits: int) -> None:
    values = np.array([-3.0, -1e-9, 0.2, 0.5, 0.999, 1.001, 5.0])
    x, above = leaf(values), upstream(7)
    numerics.dorefa_activation(x, bits).backward(above)
    inside = (values > 0) & (values < 1)
    np.testing.assert_allclose(x.grad, above.numpy() * inside, rtol=1e-14)


@pytest.mark.parametrize("bits", ROUNDED)
def test_pact_follows_its_equation_3_also_where_an_input_equals_alpha(bits: int) -> None:
    values = np.array([-1.0, 0.1, 1.4, 1.5, 1.5, 1.7, 9.0, math.inf])
    x, alpha, above = leaf(values), leaf(1.5), upstream(8)
    numerics.pact_activation(x, alpha, bits).backward(above)
    clipped = values >= 1.5
    np.testing.assert_allclose(x.grad, above.numpy() * ((values > 0) & ~clipped), rtol=1e-14)
    assert alpha.grad is not None
    assert alpha.grad.item() == pytest.approx((above.numpy() * clipped).sum(), rel=1e-14)


@pytest.mark.parametrize("bits", ROUNDED)
def test_the_gradient_of_pacts_alpha_is_the_number_of_clipped_elements(bits: int) -> None:
    values = np.random.default_rng(bits).normal(size=500)
    alpha = leaf(0.7)
    numerics.pact_activation(leaf(values), alpha, bits).sum().backward()
    assert alpha.grad is not None
    assert alpha.grad.item() == (values >= 0.7).sum()


@pytest.mark.parametrize("bits", LSQ_BITS[:-1])
@pytest.mark.parametrize("signed", [True, False], ids=["weight", "activation"])
def test_lsq_follows_equations_3_and_5_of_its_paper(bits: int, signed: bool) -> None:
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    generator = np.random.default_rng(bits)
    beyond = 0.3 * (highest - lowest)
    values = generator.uniform(lowest - beyond, highest + beyond, size=400) * 0.3  # none on a bound
    x, step, above = leaf(values), leaf(0.3), upstream(400)
    numerics.lsq(x, step, bits, signed).backward(above)
    v = values / 0.3
    assert (v <= lowest).any()
    assert (v >= highest).any()
    slope = np.where(v <= lowest, lowest, np.where(v >= highest, highest, np.rint(v) - v))
    scale = 1 / math.sqrt(400 * highest)
    assert step.grad is not None
    assert step.grad.item() == pytest.approx((above.numpy() * slope).sum() * scale, rel=1e-9)
    np.testing.assert_allclose(x.grad, above.numpy() * ((v > lowest) & (v < highest)), rtol=1e-12)


@pytest.mark.parametrize("bits", ROUNDED)
@pytest.mark.parametrize("zero_point", [0.0, 1.3, -0.7])
def test_lsq_plus_is_differentiated_straight_through_the_rounding(bits: int, zero_point: float) -> None:
    n = 2**bits - 1
    values = (np.random.default_rng(bits).uniform(-0.3 * n, 1.3 * n, size=400) - zero_point) * 0.3  # none on a bound
    x, step, z, above = leaf(values), leaf(0.3), leaf(zero_point), upstream(400)
    numerics.lsq_plus(x, step, z, bits).backward(above)
    v, up = values / 0.3 + zero_point, above.numpy()
    below, beyond = v < 0, v > n
    assert below.any()
    assert beyond.any()
    inside = ~below & ~beyond
    scale = 1 / math.sqrt(400 * n)
    np.testing.assert_allclose(x.grad, up * inside, rtol=1e-12)
    # Inside, d/ds of (round(x/s + z) - z) s is the rounding's error; outside, the level's distance from the zero point.
    slope = np.where(inside, np.rint(v) - v, np.where(below, 0.0, n) - zero_point)
    assert step.grad is not None
    assert step.grad.item() == pytest.approx((up * slope).sum() * scale, rel=1e-9)
    assert z.grad is not None
    assert z.grad.item() == pytest.approx((up * ~inside * -0.3).sum() * scale, rel=1e-9)


@pytest.mark.parametrize("bits", ROUNDED)
def test_the_gradient_of_dorefa_weights_is_that_of_the_normalized_tanh(bits: int) -> None:
    values = some_weights(3, 60)
    w, above = leaf(values), upstream(60)
    numerics.dorefa_weight(w, bits).backward(above)
    # d/dw_i of 2 (tanh(w_j) / (2 (M + 1e-8)) + 1/2) - 1, where M = |tanh(w_m)| depends on w_m alone
    t, up = np.tanh(values), above.numpy()
    largest = int(np.abs(t).argmax())
    scale = np.abs(t).max() + 1e-8
    expected = up * (1 - t**2) / scale
    expected[largest] -= (up * t).sum() / scale**2 * np.sign(t[largest]) * (1 - t[largest] ** 2)
    np.testing.assert_allclose(w.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_the_scale_of_scaled_dorefa_weights_takes_no_gradient(bits: int) -> None:
    values = some_weights(4, 60)
    w, above = leaf(values), upstream(60)
    numerics.dorefa_scaled_weight(w, bits).backward(above)
    t, up, mean = np.tanh(values), above.numpy(), np.abs(values).mean()
    largest = int(np.abs(t).argmax())
    scale = np.abs(t).max()
    expected = up * (1 - t**2) / scale * mean
    expected[largest] -= (up * t).sum() / scale**2 * np.sign(t[largest]) * (1 - t[largest] ** 2) * mean
    np.testing.assert_allclose(w.grad, expected, rtol=1e-9, atol=1e-12)


def test_scale_gradient_changes_nothing_but_the_gradient() -> None:
    x = leaf(np.array([1.5, -2.0]))
    same = numerics.scale_gradient(x, 0.25)
    assert torch.equal(same, x)
    same.sum().backward()
    np.testing.assert_array_equal(x.grad, [0.25, 0.25])


@pytest.mark.parametrize(("bits", "signed", "largest"), [(2, True, 1), (4, True, 7), (2, False, 3), (8, False, 255)])
def test_lsqs_first_step_is_twice_the_mean_magnitude_over_the_root_of_the_largest_integer(
    bits: int, signed: bool, largest: int
) -> None:
    step = numerics.lsq_initial_step(torch.tensor(0.6, dtype=torch.float64), bits, signed)
    assert step.item() == pytest.approx(1.2 / math.sqrt(largest), rel=1e-15)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("mean", [0.0, -0.4, 1.0])
def test_lsq_pluss_first_step_of_weights_spans_three_standard_deviations(bits: int, mean: float) -> None:
    w = np.random.default_rng(bits).normal(size=500) * 0.2 + mean
    reach = max(abs(w.mean() - 3 * w.std()), abs(w.mean() + 3 * w.std()))
    step, zero_point = numerics.lsq_plus_initial_weight(tensor(w), bits)
    assert step.item() == pytest.approx(reach / 2 ** (bits - 1), rel=1e-12)
    assert zero_point.item() == (2**bits - 1) / 2


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["relu", "swish", "outlier", "positive", "negative"])
def test_lsq_pluss_first_levels_of_activations_are_the_best_of_32_ranges(bits: int, kind: str) -> None:
    x = np.random.default_rng(bits).normal(size=2000)
    x = {
        "relu": np.maximum(x, 0),
        "swish": x / (1 + np.exp(-x)),
        "outlier": np.append(np.maximum(x, 0), 8.0),
        "positive": np.abs(x) + 3,
        "negative": -np.abs(x) - 3,
    }[kind]
    low, high, n = min(x.min(), 0), max(x.max(), 0), 2**bits - 1
    ranges = [(low * part / 32, high * part / 32) for part in range(1, 33)]
    errors = [
        np.square(references.lsq_plus(x, (top - bottom) / n, -bottom / ((top - bottom) / n), bits) - x).mean()
        for bottom, top in ranges
    ]
    step, zero_point = numerics.lsq_plus_initial_activation(tensor(x), bits)
    found = references.lsq_plus(x, step.item(), zero_point.item(), bits)
    assert np.square(found - x).mean() == pytest.approx(min(errors), rel=1e-9)
    if kind == "outlier" and bits == 2:
        assert n * step.item() < 4, "a single value does not decide"


def test_lsq_pluss_first_steps_are_positive_where_there_is_nothing_to_measure() -> None:
    zeros = torch.zeros(10)
    for step, zero_point in (
        numerics.lsq_plus_initial_activation(zeros, 4),
        numerics.lsq_plus_initial_weight(zeros, 4),
    ):
        assert step.item() == pytest.approx(numerics.SMALLEST_SCALE)
        assert bool((numerics.lsq_plus(zeros, step, zero_point, 4).abs() < 1e-7).all())
