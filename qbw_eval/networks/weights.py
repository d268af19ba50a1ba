"""Do a checkpoint's weights fit a network? Where they do not, what is wrong, and the likely cause."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from qbw_eval.checkpoints.safe_load import CheckpointError

_SHOWN_MISMATCHES = 5

_OF_QUANTIZERS = ("alpha", "alpha_common", "step_size", "zp")
"""What the parameters of quantizers are called."""

COUNTER = "num_batches_tracked"
"""Of batch norms: files from before torch 0.4.1 lack it, and no forward in evaluation mode reads it."""


def check_weights_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str, described: str) -> None:
    """Check that a checkpoint has exactly the weights that a network expects.

    Args:
        expected: the network's state dict.
        state: the checkpoint's.
        where: names the checkpoint in errors.
        described: words for the network.

    Raises:
        CheckpointError: names, shapes or kinds of numbers differ; lists them and the likely cause.
    """
    shapes = [name for name, tensor in expected.items() if name in state and state[name].shape != tensor.shape]
    kinds = [
        name
        for name, tensor in expected.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    missing = [name for name in expected if name not in state]
    more = [name for name in state if name not in expected]
    problems = [
        f"{name}: is {tuple(state[name].shape)} in the checkpoint, {tuple(expected[name].shape)} in the network"
        for name in shapes
    ]
    problems += [
        f"{name}: is {state[name].dtype} in the checkpoint, {expected[name].dtype} in the network" for name in kinds
    ]
    problems += [f"{name}: missing from the checkpoint" for name in missing]
    problems += [f"{name}: not in the network" for name in more]
    if problems:
        if len(problems) > _SHOWN_MISMATCHES:
            problems[_SHOWN_MISMATCHES:] = [f"and {len(problems) - _SHOWN_MISMATCHES} more"]
        cause = _cause(expected, state, shapes, missing, more)
        raise CheckpointError(f"{where}: its weights do not fit the {described}: {'; '.join(problems)}; {cause}")


def _cause(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    shapes: Sequence[str],
    missing: Sequence[str],
    more: Sequence[str],
) -> str:
    """Return the likely cause in words: a question, or what to do."""
    if missing and more:
        whole = _prefix(list(state), list(expected))
        if whole:
            return (
                f"names in the checkpoint begin with {whole!r}, which those in the network lack; build the whole "
                "network, or save the state dict of that part"
            )
        whole = _prefix(list(expected), list(state))
        if whole:
            return (
                f"names in the network begin with {whole!r}, which those in the checkpoint lack; build that part "
                "alone, or save the state dict of the whole network"
            )
    if missing and all(_is_of_quantizers(name) for name in missing):
        return "was it saved before quantizers were added, or with other ones?"
    if more and not missing and all(_is_of_quantizers(name) for name in more):
        return "was it saved with other quantizers?"
    if missing or more:
        return "was it saved from another network, or another version of its code?"
    if not shapes:
        return "weights are floating-point numbers here; was it saved from a network converted to whole numbers?"
    if all(_is_of_quantizers(name) for name in shapes):
        return "was it saved with other bitwidth options, or with clipping that is (or is not) switchable?"
    if len({name.rpartition(".")[0] for name in shapes}) == 1 and all(
        state[name].shape[1:] == expected[name].shape[1:] for name in shapes
    ):
        return "was it saved from another number of classes?"
    return "was it saved from another width, number of classes or clipping?"


def _is_of_quantizers(name: str) -> bool:
    return name.rpartition(".")[2] in _OF_QUANTIZERS


def _prefix(longer: Sequence[str], shorter: Sequence[str]) -> str:
    """Return what most names of `shorter` have before them in `longer`; empty where there is no such thing."""
    there = set(longer)
    for name in shorter[:1]:
        for candidate in longer:
            prefix = candidate.removesuffix(name)
            if candidate.endswith(f".{name}") and 2 * sum(prefix + other in there for other in shorter) > len(shorter):
                return prefix
    return ""
