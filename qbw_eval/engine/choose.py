"""Which engine runs. `auto` picks the fastest that is right for the network and the machine."""

from collections.abc import Sequence

from torch import nn

from qbw_eval.engine.reference import ReferenceEngine

ENGINES = ("auto", "reference")


def choose_engine(name: str, model: nn.Module, layer_names: Sequence[str]) -> ReferenceEngine:
    """Return the engine called `name`.

    Args:
        name: one of `ENGINES`. So far `auto` has one to pick from.
        model: the network, on the device it is to run on.
        layer_names: what a configuration's bitwidths belong to.
    """
    if name not in ENGINES:
        raise ValueError(f"engine {name!r} is not among {ENGINES}")
    return ReferenceEngine(model, layer_names)
