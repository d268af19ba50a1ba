"""Weights that do not fit: what is listed, and what is said to be the likely cause."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.networks.weights import check_weights_fit

NETWORK: Mapping[str, Tensor] = {
    "stem.weight": torch.zeros(4, 1, 3, 3),
    "conv.weight": torch.zeros(4, 4, 3, 3),
    "conv.alpha": torch.zeros(3),
    "conv.quantize_w.step_size": torch.zeros(1),
    "fc.weight": torch.zeros(10, 4),
    "fc.bias": torch.zeros(10),
}
WITHOUT_QUANTIZERS = {n: t for n, t in NETWORK.items() if n.rpartition(".")[2] not in ("alpha", "step_size")}
MISSING = "conv.alpha: missing from the checkpoint; conv.quantize_w.step_size: missing from the checkpoint"
TENSORS = "stem.weight: is (2, 1, 3, 3) in the checkpoint, (4, 1, 3, 3) in the network"


def in_part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


CASES: dict[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor], str]] = {
    "before quantizers": (
        NETWORK,
        WITHOUT_QUANTIZERS,
        f"{MISSING}; was it saved before quantizers were added, or with other ones?",
    ),
    "other quantizers": (
        WITHOUT_QUANTIZERS,
        NETWORK,
        "conv.alpha: not in the network; conv.quantize_w.step_size: not in the network; was it saved with other "
        "quantizers?",
    ),
    "other options": (
        NETWORK,
        {**NETWORK, "conv.alpha": torch.zeros(2)},
        "conv.alpha: is (2,) in the checkpoint, (3,) in the network; was it saved with other bitwidth options, or with "
        "clipping that is (or is not) switchable?",
    ),
    "other classes": (
        NETWORK,
        {**NETWORK, "fc.weight": torch.zeros(7, 4), "fc.bias": torch.zeros(7)},
        "fc.weight: is (7, 4) in the checkpoint, (10, 4) in the network; fc.bias: is (7,) in the checkpoint, (10,) in "
        "the network; was it saved from another number of classes?",
    ),
    "another width": (
        NETWORK,
        {**NETWORK, "stem.weight": torch.zeros(2, 1, 3, 3), "fc.weight": torch.zeros(10, 2)},
        f"{TENSORS}; fc.weight: is (10, 2) in the checkpoint, (10, 4) in the network; was it saved from another width, "
        "number of classes or clipping?",
    ),
    "another code": (
        NETWORK,
        {**NETWORK, "extra.weight": torch.zeros(1)},
        "extra.weight: not in the network; was it saved from another network, or another version of its code?",
    ),
    "whole numbers": (
        NETWORK,
        {**NETWORK, "fc.bias": torch.zeros(10, dtype=torch.int8)},
        "fc.bias: is torch.int8 in the checkpoint, torch.float32 in the network; weights are floating-point numbers "
        "here; was it saved from a network converted to whole numbers?",
    ),
    "the whole": (
        WITHOUT_QUANTIZERS,
        {**in_part(WITHOUT_QUANTIZERS, "body."), "head.weight": torch.zeros(1)},
        "stem.weight: missing from the checkpoint; conv.weight: missing from the checkpoint; fc.weight: missing from "
        "the checkpoint; fc.bias: missing from the checkpoint; body.stem.weight: not in the network; and 4 more; names "
        "in the checkpoint begin with 'body.', which those in the network lack; build the whole network, or save the "
        "state dict of that part",
    ),
    "a part": (
        {**in_part(WITHOUT_QUANTIZERS, "body."), "head.weight": torch.zeros(1)},
        WITHOUT_QUANTIZERS,
        "body.stem.weight: missing from the checkpoint; body.conv.weight: missing from the checkpoint; "
        "body.fc.weight: missing from the checkpoint; body.fc.bias: missing from the checkpoint; head.weight: missing "
        "from the checkpoint; and 4 more; names in the network begin with 'body.', which those in the checkpoint "
        "lack; build that part alone, or save the state dict of the whole network",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_listed_with_the_likely_cause(name: str) -> None:
    expected, state, sentence = CASES[name]
    with pytest.raises(CheckpointError) as error:
        check_weights_fit(expected, state, "here.pt", "network")
    assert str(error.value) == f"here.pt: its weights do not fit the network: {sentence}"


def test_what_fits_is_not_mentioned() -> None:
    half = {name: tensor.half() for name, tensor in NETWORK.items()}
    check_weights_fit(NETWORK, half, "here.pt", "network")
    check_weights_fit({}, {}, "here.pt", "network")
