"""What somebody's network, loader or layer may do that ours do not, inside somebody's training loop."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbw_eval.configurations import sample
from qbw_eval.engine.choose import choose_engine
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.nested import tensors_like
from qbw_eval.validation import validate_random_bitwidths

OPTIONS = (2, 4, 8)
CONFIGURATIONS = sample("iid", 2, OPTIONS, 6, seed=0)


class Rounding(nn.Linear):
    """A layer of somebody's own, whose setter keeps more than the bits."""

    bitwidth_options = OPTIONS

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.set_bitwidth(8)

    def set_bitwidth(self, bits: int) -> None:
        self.curr_bitwidth, self.steps = bits, 2**bits - 1

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name for the argument
        return F.linear(torch.round(input.sigmoid() * self.steps) / self.steps, self.weight, self.bias)


class Network(nn.Module):
    """Two of them; `before` is what happens to the input first."""

    def __init__(self, before: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.first, self.second = before or nn.Identity(), Rounding(), Rounding()

    def forward(self, x: Any) -> Tensor:
        found: Tensor = self.second(torch.relu(self.first(self.before(x))))
        return found


class Sides(Network):
    """Reads a dict, and a key that is not always there."""

    def forward(self, x: Any) -> Tensor:
        y = super().forward(x["left"] - 2 * x["right"])
        return y + x["bias"] if "bias" in x else y


class ShiftsItsInput(Network):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        return super().forward(x)


def inputs(seed: int) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


def logits_of(engine: Any, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        found = dict(engine.logits(batch, CONFIGURATIONS))
    return [found[position] for position in range(len(CONFIGURATIONS))]


@pytest.mark.parametrize("keys", [("left", "right"), ("right", "left"), ("left", "right", "bias")])
def test_a_batch_whose_dict_has_another_order_or_another_key_is_not_mistaken(keys: tuple[str, ...]) -> None:
    network = Sides().eval()
    first = {"left": inputs(0), "right": inputs(1)}
    engine = IncrementalEngine(network, ["first", "second"], first, 10**6)
    later = {key: inputs(number) for number, key in enumerate(keys)}
    expected = logits_of(ReferenceEngine(network, ["first", "second"]), dict(later))
    for found, reference in zip(logits_of(engine, later), expected, strict=True):
        assert torch.equal(found, reference)


def test_tensors_are_taken_in_the_order_of_the_model_or_not_at_all() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    like = {"a": one, "b": [one, (one,)]}
    found = tensors_like({"b": [one, (two,)], "a": two}, like)
    assert found is not None
    assert [float(tensor) for tensor in found] == [1, 0, 1]
    for other in ({"a": one}, {"a": one, "b": [one]}, {"a": one, "b": one}, [one], {"a": [one], "b": [one, (one,)]}):
        assert tensors_like(other, like) is None


def test_a_forward_that_changes_its_input_changes_neither_the_data_nor_the_next_configuration() -> None:
    network, x = ShiftsItsInput().eval(), inputs(0)
    before = x.clone()
    plain = Network().eval()
    expected = logits_of(ReferenceEngine(plain, ["first", "second"]), x - 0.1)
    for found, shifted in zip(logits_of(ReferenceEngine(network, ["first", "second"]), x), expected, strict=True):
        assert torch.equal(found, shifted)
    validate_random_bitwidths(network, [(x, torch.zeros(5, dtype=torch.long))], log=lambda _line: None)
    assert torch.equal(x, before)


def test_a_setter_that_keeps_more_than_the_bits_puts_it_back_too() -> None:
    network, x = Network(), inputs(0)
    network.first.set_bitwidth(4)
    before = network(x)
    validate_random_bitwidths(network, [(x, torch.zeros(5, dtype=torch.long))], num_configs=5, log=lambda _line: None)
    assert (network.first.curr_bitwidth, network.first.steps) == (4, 15)
    assert (network.second.curr_bitwidth, network.second.steps) == (8, 255)
    assert torch.equal(network(x), before)


def test_dropout_in_place_is_off_also_where_training_is_interrupted_to_validate() -> None:
    network, x = Network(nn.Dropout(0.5, inplace=True)), torch.ones(5, 4)
    network.train()
    choice = choose_engine("auto", network, ["first", "second"], x.clone(), OPTIONS, cache_bytes=10**6)
    assert choice.engine.name == "incremental"
    expected = logits_of(ReferenceEngine(network, ["first", "second"]), x)
    for found, reference in zip(logits_of(choice.engine, x), expected, strict=True):
        assert torch.equal(found, reference)
    assert network.before.training


def test_training_goes_on_with_what_the_loader_and_the_network_have_cached() -> None:
    kept: list[Tensor] = []

    class Caching(Network):
        mask: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.mask is None:
                self.mask = torch.ones_like(x)
            return super().forward(x * self.mask)

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        kept.append(inputs(0) + 0)
        yield kept[0], torch.zeros(5, dtype=torch.long)

    network = Caching()
    validate_random_bitwidths(network, loader(), log=lambda _line: None)
    F.cross_entropy(network(kept[0]), torch.zeros(5, dtype=torch.long)).backward()
    assert network.second.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_number_type(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 2, 3, 0])
    expected, found = (
        validate_random_bitwidths(Network(), [(inputs(0), numbers)], log=lambda _line: None)
        for numbers in (labels, labels.to(dtype))
    )
    assert expected is not None
    assert found is not None
    assert found.measurements == expected.measurements
