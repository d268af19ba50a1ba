"""The reference engine on the demo's trained network against a float64 forward that shares no code with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import references
import torch
from torch import Tensor, nn

from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.configurations import BitwidthConfiguration, sample
from qbw_eval.data.sources import load_split
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.tally import predictions_of
from qbw_eval.networks.build import load_network
from qbw_eval.quantization.bitwidths import get_bitwidths, quantized_layers

OPTIONS = (2, 4, 8)
UNIFORM = [BitwidthConfiguration(bitwidths=(bits,) * 8, index=-1) for bits in (2, 4, 8, 32)]
MIXED = [*sample("iid", 8, OPTIONS, 6, seed=1), *sample("iid", 8, (2, 8, 32), 2, seed=2)]
CONFIGURATIONS = UNIFORM + MIXED


@pytest.fixture(scope="module")
def network(demo_checkpoint: Path) -> nn.Module:
    checkpoint = read_checkpoint(demo_checkpoint)
    assert checkpoint.experiment.layer_options == OPTIONS
    return load_network(checkpoint.experiment, checkpoint.state, "demo")


@pytest.fixture(scope="module")
def double_network(demo_checkpoint: Path) -> nn.Module:
    checkpoint = read_checkpoint(demo_checkpoint)
    return load_network(checkpoint.experiment, checkpoint.state, "demo").double()


@pytest.fixture(scope="module")
def inputs(demo_checkpoint: Path) -> Tensor:
    return load_split(read_checkpoint(demo_checkpoint).experiment.data, "validation").inputs


def logits_of(network: nn.Module, inputs: Tensor, configurations: Sequence[BitwidthConfiguration]) -> list[Tensor]:
    engine = ReferenceEngine(network, references.RESNET8_LAYERS)
    with torch.inference_mode():
        found = dict(engine.logits(inputs, configurations))
    return [found[position] for position in range(len(configurations))]


def test_in_float64_the_engine_is_numpys_forward(network: nn.Module, double_network: nn.Module, inputs: Tensor) -> None:
    inputs = inputs[:200].double()
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    for configuration, ours in zip(CONFIGURATIONS, logits_of(double_network, inputs, CONFIGURATIONS), strict=True):
        expected = references.resnet8(state, inputs.numpy(), configuration.bitwidths, OPTIONS)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-9, err_msg=str(configuration))
        np.testing.assert_array_equal(predictions_of(ours).numpy(), expected.argmax(axis=1))


def test_in_float32_the_engine_gives_numpys_classes_on_all_but_rounding_ties(
    network: nn.Module, inputs: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = inputs[:200]
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    differing = []
    for configuration, ours in zip(CONFIGURATIONS, logits_of(network, inputs, CONFIGURATIONS), strict=True):
        expected = references.resnet8(state, inputs.double().numpy(), configuration.bitwidths, OPTIONS)
        differing.append(int((predictions_of(ours).numpy() != expected.argmax(axis=1)).sum()))
    with capsys.disabled():
        print(f"\nsamples of 200 whose class is not float64 NumPy's: {named(differing)}")
    assert max(differing) <= 2


def named(counts: Sequence[int]) -> str:
    uniform = [f"uniform {one.bitwidths[0]} bits {count}" for one, count in zip(UNIFORM, counts, strict=False)]
    return ", ".join([*uniform, f"mixed {list(counts[len(UNIFORM) :])}"])


# --- every difference between float32 and float64 is explained ------------------------------------------------------


class Rounding(NamedTuple):
    """PACT's min(max(x, 0), alpha) n / alpha of a layer's input in float64, and the integers the layer makes of it."""

    before: Tensor
    after: Tensor


@contextmanager
def roundings_noted(network: nn.Module) -> Iterator[dict[str, Rounding]]:
    """Note what every layer rounds and to what; not at 32 bits."""
    noted: dict[str, Rounding] = {}

    def note(layer: Any, arguments: tuple[Tensor]) -> None:
        (x,), bits = arguments, layer.curr_bitwidth
        if bits < 32:
            alpha, n = layer.alpha[OPTIONS.index(bits)].double(), 2**bits - 1
            before = torch.minimum(x.double().clamp(min=0), alpha) * n / alpha
            noted[layer.layer_name] = Rounding(before, (layer.quantize_activation(x).double() * n / alpha).round())

    hooks = [layer.register_forward_pre_hook(note) for layer in quantized_layers(network).values()]
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()


def met_a_tie(in32: dict[str, Rounding], in64: dict[str, Rounding], count: int) -> Tensor:
    """Return (N,) booleans: does anything round differently? Where it first does, float64 must be next to a tie."""
    differs = torch.zeros(count, dtype=torch.bool)
    for name in in64:  # in forward order
        before, after = in64[name]
        elements = (in32[name].after != after) & ~differs[:, None, None, None]
        to_the_tie = (before - before.floor() - 0.5).abs()
        # A thousandth of a level is some hundred roundings of float32; at random, one element in 500 is as close.
        assert (to_the_tie[elements] < 1e-3).all(), f"{name}: rounds differently, and not at a tie"
        differs |= elements.any(dim=(1, 2, 3))
    return differs


def test_every_sample_that_float32_sees_differently_met_a_rounding_tie(
    network: nn.Module, double_network: nn.Module, inputs: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    classes, roundings = [], []
    for configuration in CONFIGURATIONS:
        with roundings_noted(network) as in32:
            (ours,) = logits_of(network, inputs, [configuration])
        with roundings_noted(double_network) as in64:
            (truth,) = logits_of(double_network, inputs.double(), [configuration])
        layers = zip(references.RESNET8_LAYERS, configuration.bitwidths, strict=True)
        assert set(in64) == {name for name, bits in layers if bits < 32}
        tie = met_a_tie(in32, in64, len(inputs))
        # Where nothing rounds differently, float32 is float64 but for its own precision.
        torch.testing.assert_close(ours[~tie].double(), truth[~tie], rtol=1e-4, atol=1e-4)
        another_class = predictions_of(ours) != predictions_of(truth)
        gap = truth.topk(2, dim=1).values.diff(dim=1).abs()[:, 0]
        assert (tie | (gap < 1e-3))[another_class].all()
        classes.append(int(another_class.sum()))
        roundings.append(int(tie.sum()))
        assert classes[-1] <= len(inputs) / 100
    with capsys.disabled():
        print(f"\nsamples of {len(inputs)} that float32 and float64 see differently: {named(classes)}")
        print(f"samples of {len(inputs)} with an activation that rounds differently: {named(roundings)}")


def test_quantized_weights_are_float64s_but_for_near_ties(
    network: nn.Module, double_network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    differing = {}
    for bits in OPTIONS:
        n, count = 2**bits - 1, 0
        for name in references.RESNET8_LAYERS:
            ours, truth = network.get_submodule(name), double_network.get_submodule(name)
            weight = truth.weight.detach().numpy()
            before = references.dorefa_weight_before_rounding(weight, bits)
            ours.set_bitwidth(bits)
            levels = np.rint((ours.quantize_weight().detach().double().numpy() + 1) / 2 * n)
            wrong = levels != np.rint(before)
            assert (np.abs(before - np.floor(before) - 0.5)[wrong] < 1e-6 * n).all()
            count += int(wrong.sum())
            ours.set_bitwidth(8)
        differing[bits] = count
    with capsys.disabled():
        print(f"\nweights of the demo's network whose level is not float64's, by bits: {differing}")


# --- what the engine promises ---------------------------------------------------------------------------------------


def test_the_network_gets_its_bits_and_mode_back_also_when_nobody_asks_for_the_rest(
    network: nn.Module, inputs: Tensor
) -> None:
    engine = ReferenceEngine(network, references.RESNET8_LAYERS)
    network.train()
    try:
        before = get_bitwidths(network)
        results = engine.logits(inputs[:4], CONFIGURATIONS)
        next(results)
        assert set(get_bitwidths(network).values()) == {2}
        results.close()
        assert get_bitwidths(network) == before
        assert all(module.training for module in network.modules())
    finally:
        network.eval()


def test_bits_are_given_in_the_order_of_the_layer_names_handed_in(network: nn.Module, inputs: Tensor) -> None:
    names = references.RESNET8_LAYERS
    forwards = ReferenceEngine(network, names)
    backwards = ReferenceEngine(network, names[::-1])
    mixed = MIXED[0]
    assert mixed.bitwidths != mixed.bitwidths[::-1]
    reversed_bits = BitwidthConfiguration(bitwidths=mixed.bitwidths[::-1], index=0)
    with torch.inference_mode():
        ((_, expected),) = forwards.logits(inputs[:9], [mixed])
        ((_, found),) = backwards.logits(inputs[:9], [reversed_bits])
    assert torch.equal(found, expected)


def test_as_many_bits_as_layers_or_an_error(network: nn.Module, inputs: Tensor) -> None:
    engine = ReferenceEngine(network, references.RESNET8_LAYERS)
    with pytest.raises(ValueError, match="zip"):
        list(engine.logits(inputs[:1], [BitwidthConfiguration(bitwidths=(2, 4), index=0)]))
