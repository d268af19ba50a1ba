"""The incremental engine gives the reference's very bits, whatever the network, the configurations and the batches."""

import copy
import gc
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import (
    Case,
    Make,
    OneBranch,
    cases,
    configurations_of,
    layer_names_of,
    naive_logits,
    part_of,
    random_configurations,
    randomize,
)
from references import RESNET8_LAYERS
from torch import Tensor, nn

from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.configurations import sample
from qbw_eval.data.sources import load_split
from qbw_eval.engine.incremental import IncrementalEngine, QuantizedWeights
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.engine.walk import Operation
from qbw_eval.networks.build import load_network
from qbw_eval.quantization import layers as layers_module
from qbw_eval.quantization.bitwidths import get_bitwidths
from qbw_eval.quantization.layers import QuantConv2d, Quantizers

MUCH = 10**8
SLOW = settings(
    max_examples=40,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],  # building networks takes its time
)


def engine_of(case: Case, cache_bytes: int = MUCH) -> IncrementalEngine:
    return IncrementalEngine(case.network, case.layer_names, case.inputs, cache_bytes)


@SLOW
@given(st.data())
def test_every_bit_is_the_references(data: st.DataObject) -> None:
    case = data.draw(cases())
    configurations = data.draw(random_configurations(case))
    cut = data.draw(st.integers(0, len(case)), label="batches are split here")
    engine = engine_of(case, data.draw(st.sampled_from([0, 300, MUCH]), label="cache"))
    reference = ReferenceEngine(case.network, case.layer_names)
    for samples in (slice(0, cut), slice(cut, len(case)), slice(0, len(case))):
        if samples.start == samples.stop:
            continue
        inputs = part_of(case.inputs, samples)
        with torch.inference_mode():
            found = dict(engine.logits(inputs, configurations))
            expected = dict(reference.logits(inputs, configurations))
        assert sorted(found) == list(range(len(configurations)))
        naive = naive_logits(case.network, case.layer_names, inputs, configurations)
        for position in range(len(configurations)):
            assert torch.equal(found[position], expected[position])
            assert torch.equal(found[position], naive[position])


@SLOW
@given(st.data())
def test_neither_order_nor_company_changes_a_bit(data: st.DataObject) -> None:
    case = data.draw(cases())
    configurations = data.draw(random_configurations(case))
    engine = engine_of(case)
    with torch.inference_mode():
        together = dict(engine.logits(case.inputs, configurations))
        shuffled = data.draw(st.permutations(range(len(configurations))))
        again = dict(engine.logits(case.inputs, [configurations[position] for position in shuffled]))
        for place, position in enumerate(shuffled):
            assert torch.equal(again[place], together[position])
        alone = data.draw(st.sampled_from(range(len(configurations))))
        ((_, logits),) = engine.logits(case.inputs, [configurations[alone]])
        assert torch.equal(logits, together[alone])


def test_every_bit_is_the_references_on_the_demos_trained_network(demo_checkpoint: Path) -> None:
    checkpoint = read_checkpoint(demo_checkpoint)
    network = load_network(checkpoint.experiment, checkpoint.state, "demo")
    inputs = load_split(checkpoint.experiment.data, "validation").inputs[:200]
    configurations = [*sample("iid", 8, (2, 4, 8), 10, seed=5), *sample("uniform", 8, (2, 4, 8, 32), 4, seed=0)]
    with torch.inference_mode():
        found = dict(IncrementalEngine(network, RESNET8_LAYERS, inputs, MUCH).logits(inputs, configurations))
        for position, expected in ReferenceEngine(network, RESNET8_LAYERS).logits(inputs, configurations):
            assert torch.equal(found[position], expected)


def test_the_random_networks_are_worth_comparing() -> None:
    """Their logits depend on the bits of most layers, so that a stale value would show."""
    make = Make(
        quantizers=Quantizers(options=(2, 4, 8), activation="pact"), switchable_batch_norm=True, kernel=3, groups=2
    )
    network = OneBranch(make, ["residual", "pre-activation", "chain"], [4, 8, 8], [1, 2, 1]).eval()
    randomize(network, 3)
    names = layer_names_of(network)
    all_eight = [8] * len(names)
    changed = [[*all_eight[:layer], 2, *all_eight[layer + 1 :]] for layer in range(len(names))]
    x = torch.randn(4, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    base, *others = naive_logits(network, names, x, configurations_of(all_eight, *changed))
    assert all(not torch.equal(base, other) for other in others)


# --- what it promises besides ---------------------------------------------------------------------------------------


@pytest.fixture
def case() -> Case:
    make = Make(
        quantizers=Quantizers(options=(2, 4, 8), activation="pact"), switchable_batch_norm=True, kernel=3, groups=1
    )
    network = OneBranch(make, ["residual", "chain"], [4, 8], [1, 2])
    randomize(network, 1)
    inputs = torch.randn(3, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return Case(network=network, inputs=inputs, layer_names=layer_names_of(network), options=(2, 4, 8))


def test_bits_and_mode_are_put_back_at_the_end_and_when_nobody_asks_for_the_rest(case: Case) -> None:
    network = case.network.train()
    before = get_bitwidths(network)
    state = copy.deepcopy(network.state_dict())
    configurations = configurations_of(*([bits] * len(case.layer_names) for bits in (2, 4, 32)))
    engine = engine_of(case)
    assert all(module.training for module in network.modules())
    results = engine.logits(case.inputs, configurations)
    next(results)
    assert set(get_bitwidths(network).values()) == {2}
    assert not any(module.training for module in network.modules())
    results.close()
    for _ in range(2):
        assert get_bitwidths(network) == before
        assert all(module.training for module in network.modules())
        assert list(network.state_dict()) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        list(engine.logits(case.inputs, configurations))


def test_the_batch_is_left_as_it_was(case: Case) -> None:
    class ChangesItsInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.inner = case.network

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.relu(x))  # type: ignore[no-any-return]  # modules are untyped calls

    network = ChangesItsInput().eval()
    engine = IncrementalEngine(network, layer_names_of(network), case.inputs, MUCH)
    before = case.inputs.clone()
    list(engine.logits(case.inputs, configurations_of([2] * len(case.layer_names))))
    assert torch.equal(case.inputs, before)
    assert bool((before < 0).any())
    assert network.relu.inplace, "the network's own module keeps its habit"


def test_as_many_bits_as_layers_or_an_error(case: Case) -> None:
    count = len(case.layer_names)
    with pytest.raises(ValueError, match=rf"^2 bitwidths for {count} layers$"):
        list(engine_of(case).logits(case.inputs, configurations_of([2] * count, [2, 4])))


def test_bits_belong_to_layers_in_the_order_of_the_names_handed_in(case: Case) -> None:
    bits = [2, 4, 8, 2, 2, 4, 4][: len(case.layer_names)]
    assert bits != bits[::-1]
    backwards = IncrementalEngine(case.network.eval(), case.layer_names[::-1], case.inputs, MUCH)
    ((_, found),) = backwards.logits(case.inputs, configurations_of(bits[::-1]))
    (expected,) = naive_logits(case.network, case.layer_names, case.inputs, configurations_of(bits))
    assert torch.equal(found, expected)


def test_of_two_configurations_only_what_differs_is_computed_and_weights_are_quantized_once(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(case.layer_names)
    last = case.layer_names.index("hidden")
    runs: list[str] = []
    quantized: list[tuple[str, int]] = []
    run, quantize = QuantConv2d.run, QuantConv2d.quantize_weight
    names = {module: name for name, module in case.network.named_modules()}

    def noted_run(layer: QuantConv2d, x: Tensor, weight: Tensor) -> Tensor:
        runs.append(names[layer])
        return run(layer, x, weight)

    def noted_quantize(layer: QuantConv2d) -> Tensor:
        quantized.append((names[layer], layer.curr_bitwidth))
        return quantize(layer)

    monkeypatch.setattr(layers_module.QuantConv2d, "run", noted_run)
    monkeypatch.setattr(layers_module.QuantConv2d, "quantize_weight", noted_quantize)
    convolutions = [name for name in case.layer_names if name != "hidden"]
    engine = engine_of(case)
    all_four, other_last = [4] * count, [8 if layer == last else 4 for layer in range(count)]
    configurations = configurations_of(all_four, other_last, all_four)
    for _ in range(2):  # two batches
        list(engine.logits(case.inputs, configurations))
    assert sorted(runs) == sorted(convolutions * 2), "once a batch"
    assert sorted(quantized) == sorted((name, 4) for name in convolutions), "once in all"


def test_what_lives_at_once_is_what_can_be_counted_by_hand() -> None:
    make = Make(quantizers=Quantizers(options=(2, 4)), switchable_batch_norm=False, kernel=1, groups=1)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = make.conv(3, 8, 1)
            self.second = make.conv(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)).flatten(1)  # type: ignore[no-any-return]  # modules are untyped calls

    network = Two().eval()
    x = torch.randn(2, 3, 5, 5)
    engine = IncrementalEngine(network, ["first", "second"], x, MUCH)
    one = 2 * 8 * 5 * 5 * 4  # bytes of either layer's result; the flat view shares its memory, the batch is not counted
    with torch.inference_mode():
        assert engine.peak_bytes(x, configurations_of([2, 2])) == 2 * one
        # The first result is kept for the second configuration, and so is the last one until it is handed out.
        assert engine.peak_bytes(x, configurations_of([2, 2], [2, 4])) == 2 * one
        assert engine.peak_bytes(x[:1], configurations_of([2, 2])) == one


def test_weights_beyond_the_limit_are_quantized_anew_and_never_kept(case: Case) -> None:
    layer = case.network.get_submodule("blocks.0.conv1")
    assert isinstance(layer, QuantConv2d)
    layer.set_bitwidth(4)
    size = layer.weight.nbytes
    kept, forgotten = QuantizedWeights(size), QuantizedWeights(size - 1)
    assert kept.of(layer, 4) is kept.of(layer, 4)
    assert forgotten.of(layer, 4) is not forgotten.of(layer, 4)
    assert torch.equal(forgotten.of(layer, 4), layer.quantize_weight())
    first = kept.of(layer, 4)
    layer.set_bitwidth(2)
    kept.of(layer, 2)  # pushes out what was used longest ago
    layer.set_bitwidth(4)
    assert kept.of(layer, 4) is not first


def test_nothing_of_a_batch_outlives_its_results(case: Case) -> None:
    engine = engine_of(case)
    configurations = configurations_of([2] * len(case.layer_names), [4] * len(case.layer_names))

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    with torch.inference_mode():
        for _ in engine.logits(case.inputs, configurations):
            pass
        before = tensors()
        for _ in engine.logits(case.inputs, configurations):
            pass
        assert tensors() == before


def test_operations_say_what_they_are(case: Case) -> None:
    operations = engine_of(case).program.operations
    assert all(isinstance(operation, Operation) for operation in operations)
    looked_at = [position for operation in operations for position in operation.layers]
    # A switchable batch norm looks at the bits of its layer too; the quantized linear layer stands alone.
    assert set(looked_at) == set(range(len(case.layer_names)))
    assert looked_at.count(case.layer_names.index("blocks.0.conv1")) == 2
    assert looked_at.count(case.layer_names.index("hidden")) == 1
