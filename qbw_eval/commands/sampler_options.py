"""The options that say which configurations: shared by `qbw-eval run` and `qbw-eval sample`."""

import re
from dataclasses import dataclass
from pathlib import Path

from qbw_eval.configurations import SEEDED
from qbw_eval.sampling.given import Given, read_given
from qbw_eval.sampling.ranges import CostRange, parse_range
from qbw_eval.settings.quantization import RandomBitwidths
from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """What the user says of the configurations, as the help describes it; None where the experiment decides."""

    sampler: str | None
    num_configs: int | None
    seed: int | None
    range: CostRange | None
    cost: str | None
    base: int | None
    configurations: Path | None
    of: str | None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is drawn: the options, and the experiment's settings where they are silent.

    Attributes:
        sampler, count, seed: see `configurations.sample`.
        range, cost, base: see `configurations.SamplerSettings`.
        given: configurations that somebody wrote down, for the samplers that need some.
    """

    sampler: str
    count: int | None
    seed: int
    range: CostRange | None
    cost: str | None
    base: int | None
    given: Given | None


def read_configurations(options: SamplerOptions) -> Given | None:
    """Return the configurations that the options name; None where they name none.

    Raises:
        UsageError: a file cannot be read, or the options contradict each other.
    """
    for option, value, sampler in (
        ("--configurations", options.configurations, "file"),
        ("--of", options.of, "neighbours"),
    ):
        if value is not None and options.sampler not in (None, sampler):
            raise UsageError(f"{option}: goes with --sampler {sampler}, not with {options.sampler}")
        if value is None and options.sampler == sampler:
            raise UsageError(f"--sampler {sampler}: say with {option} which configurations")
    if options.configurations is not None:
        if options.of is not None:
            raise UsageError("--configurations and --of: they are two samplers; leave one out")
        return read_given(options.configurations)
    return None if options.of is None else bits_or_file(options.of, "--of")


def bits_or_file(text: str, option: str) -> Given:
    """Return the configuration that stands in an option's value, or those in the file that it names.

    Raises:
        UsageError: it is neither.
    """
    if re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2})*", text):
        return Given(option, (tuple(int(bits) for bits in text.split(",")),))
    return read_given(Path(text))


def resolve(options: SamplerOptions, given: Given | None, otherwise: RandomBitwidths) -> Sampling:
    """Return what is drawn, where `otherwise` is what the experiment says."""
    implied = "file" if options.configurations is not None else "neighbours" if options.of is not None else None
    sampler = options.sampler or implied or otherwise.sampler or "stratified"
    bounds = options.range or (parse_range(otherwise.range) if otherwise.range else None)
    # What the experiment says of another sampler than this, or of another range, says nothing here.
    cost = otherwise.cost if sampler == "stratified" and options.range is None else None
    base = otherwise.base if sampler == "one-layer" else None
    return Sampling(
        sampler=sampler,
        count=options.num_configs or (otherwise.num_bitwidths if sampler in SEEDED else None),
        seed=otherwise.seed if options.seed is None else options.seed,
        range=bounds,
        cost=options.cost or cost,
        base=base if options.base is None else options.base,
        given=given,
    )
