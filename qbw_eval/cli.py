"""The words of `qbw-eval`: click options -> `commands`. Heavy imports wait for a command, so `--help` is instant."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from schemas.errors import exit_code_of

if TYPE_CHECKING:  # heavy imports wait for a command
    from qbw_eval.commands.sampler_options import SamplerOptions
    from qbw_eval.sampling.ranges import CostRange

MAX_SEED = 2**63 - 1
"""A record's seed is an int64."""

_CONFIG_HELP = "Experiment file to use instead of the checkpoint's own; or what it lacks, such as data."
_DATA_ROOT_HELP = "Folder that stands in for the beginning of paths in a sample index that are not here."
_TRUST_HELP = "Let this file run code while it is read, if that is what it takes; repeatable. Only for your own."
_MAX_BYTES_HELP = "What a checkpoint may hold at most, such as 4GiB.  [default: 1/2 of the machine's memory]"
_DEVICE_HELP = "auto (the first GPU, else the CPU), cpu, cuda or cuda:INDEX"


class _Bitwidths(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1 to 32 with commas between."""

    name = "bits,bits,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        words = [word.strip() for word in str(value).split(",")]
        if not all(word.isdecimal() and 1 <= int(word) <= 32 for word in words):
            self.fail(f"expected whole numbers from 1 to 32 with commas between, found {value!r}", param, ctx)
        return tuple(sorted({int(word) for word in words}))


class _Measurements(click.ParamType[frozenset[str]]):
    """Names of measurements with commas between; they are the fields of `tally.Measures` that are on by default."""

    name = "name,name,..."
    skippable = ("agreement", "kl", "mask", "top5")

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[str]:
        words = [word.strip() for word in str(value).split(",")]
        for word in words:
            if word not in self.skippable:
                known = ", ".join(self.skippable)
                self.fail(f"expected some of {known} with commas between, found {word!r}", param, ctx)
        return frozenset(words)


class _Size(click.ParamType[int]):
    """Bytes, in words."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from qbw_eval.memory import parse_size

        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


_TRUST = click.option(
    "--trust-pickle", type=click.Path(path_type=Path), multiple=True, metavar="FILE", help=_TRUST_HELP
)
_MAX_BYTES = click.option("--max-bytes", type=_Size(), help=_MAX_BYTES_HELP)


class _Duration(click.ParamType[float]):
    """Seconds, in words."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from qbw_eval.watching import parse_duration

        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Range(click.ParamType["CostRange"]):
    """A cost and its lowest and highest value."""

    name = "cost=low:high"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> "CostRange":
        from qbw_eval.sampling.ranges import parse_range

        try:
            return parse_range(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


_Command = TypeVar("_Command", bound=Callable[..., object])

_SAMPLERS = ("stratified", "iid", "uniform", "one-layer", "neighbours", "file")
_COSTS = (
    *("avg_bitwidth", "weighted_avg_bitwidth", "weight_bytes"),
    *("relative_weight_bytes", "bit_ops", "relative_bit_ops"),
)


def _which_configurations(command: _Command) -> _Command:
    """Add the options that say which configurations; they come together as a dict, see `_sampler_options`."""
    options = (
        click.option(
            "--num-configs",
            type=click.IntRange(1, 1_000_000),
            help="Configurations a checkpoint.  [default: experiment's; all of samplers that do not draw]",
        ),
        click.option(
            "--sampler",
            type=click.Choice(_SAMPLERS),
            help="stratified: spread evenly over the range of a cost, the uniform ones first; iid: each layer's bits "
            "drawn independently; uniform: every layer at the same bits; one-layer: each layer in turn at each option; "
            "neighbours, file: see --of, --configurations.  [default: experiment's, else stratified]",
        ),
        click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Seed of the sampler.  [default: experiment's]"),
        click.option(
            "--range",
            type=_Range(),
            help="Only configurations whose cost lies in it, such as avg_bitwidth=3:5 or weight_bytes=:20000.",
        ),
        click.option(
            "--cost",
            type=click.Choice(_COSTS),
            help="stratified: what is spread evenly.  [default: the cost of --range, else avg_bitwidth]",
        ),
        click.option(
            "--base",
            type=click.IntRange(1, 32),
            help="one-layer: the bits of the other layers.  [default: the largest option]",
        ),
        click.option(
            "--of",
            metavar="BITS,BITS,...|FILE",
            help="neighbours: all that differ from this one in one layer by one option step.",
        ),
        click.option(
            "--configurations", type=click.Path(path_type=Path), help="file: a JSON, YAML or CSV file of them."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _sampler_options(options: dict[str, object]) -> "SamplerOptions":
    """Take the options of `_which_configurations` out of a command's options."""
    from qbw_eval.commands.sampler_options import SamplerOptions

    names = SamplerOptions.__dataclass_fields__
    return SamplerOptions(**{name: options.pop(name) for name in names})  # type: ignore[arg-type]  # click has checked the types


def _with_options_of(other: click.Command, *, without: tuple[str, ...]) -> Callable[[click.Command], click.Command]:
    """Return a decorator that gives a command the options of another one, and so those that it will have."""

    def decorate(command: click.Command) -> click.Command:
        command.params += [option for option in other.params if option.name not in without]
        return command

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="qbw")
@click.pass_context
def cli(context: click.Context) -> None:
    """Evaluate any-precision networks at many bitwidth configurations, one Parquet row each."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_WHERE = ("executor", "workers", "gpus", "shard", "scheduler")
"""The options that say where it runs."""


@cli.command()
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True)
@click.option("--config", type=click.Path(path_type=Path), help=_CONFIG_HELP)
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    default=Path("results/records"),
    show_default=True,
    help="Output folder.",
)
@_which_configurations
@click.option("--bitwidths", type=_Bitwidths(), help="Options to draw from, such as 2,4,8.  [default: experiment's]")
@click.option("--device", default="auto", show_default=True, help=f"Where to run: {_DEVICE_HELP}.")
@click.option("--batch-size", type=click.IntRange(1, 65_536), help="Samples a forward pass.  [default: experiment's]")
@click.option("--limit", type=click.IntRange(1, 2**31), help="Use the first so many samples only.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="validation",
    show_default=True,
    help="Which data to evaluate on.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "reference", "incremental", "integer"]),
    default="auto",
    show_default=True,
    help="What computes the rows; auto picks the fastest that is right, and says why.",
)
@click.option("--skip", type=_Measurements(), help="What not to measure: agreement, kl, mask, top5, commas between.")
@click.option("--per-class", is_flag=True, help="Count samples and hits of every class too.")
@click.option("--memory", type=_Size(), help="For data, weights and activations, such as 4GiB.  [default: 1/4 of free]")
@click.option("--data-root", type=click.Path(path_type=Path), help=_DATA_ROOT_HELP)
@_MAX_BYTES
@_TRUST
@click.option("--tf32", is_flag=True, help="Allow TensorFloat-32 on CUDA: faster, less exact, other rows.")
@click.option(
    "--executor",
    type=click.Choice(["local", "shard", "dask"]),
    help="local: all GPUs of this machine, a process each, or this process; shard: the same for a share, see --shard; "
    "dask: a Dask cluster.  [default: as the options below tell, else local]",
)
@click.option("--workers", type=click.IntRange(1, 4096), help="Processes here.  [default: one a GPU, else one]")
@click.option("--gpus", type=click.IntRange(1, 4096), help="Use so many GPUs, or fail.  [default: all there are]")
@click.option(
    "--shard",
    metavar="I/N|auto[/N]",
    help="Evaluate share I of N only; auto: as SLURM's array or Kubernetes' indexed job says (auto/N there).",
)
@click.option("--scheduler", metavar="ADDRESS", help="Dask's, such as tcp://10.0.0.5:8786.  [default: start one here]")
@click.option("--resume/--no-resume", default=True, help="Skip what is in the records; or evaluate all of it again.")
@click.option("--dry-run", is_flag=True, help="Say what would be evaluated, and what it takes; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option("--verbose", "-v", is_flag=True, help="Print every configuration as it is finished.")
def run(**options: object) -> None:
    """Evaluate checkpoints: files, folders or globs. Running it again adds only what is missing."""
    from qbw_eval.commands.evaluating import RunOptions
    from qbw_eval.commands.executing import ExecutorOptions
    from qbw_eval.commands.run import run_command

    sampling = _sampler_options(options)
    executing = ExecutorOptions(**{name: options.pop(name) for name in _WHERE})  # type: ignore[arg-type]  # likewise
    run_command(RunOptions(sampling=sampling, **options), executing)  # type: ignore[arg-type]  # click has checked the types


@cli.command()
@click.argument("checkpoint", metavar="[CKPT]", type=click.Path(path_type=Path), required=False)
@click.option("--layers", type=click.IntRange(1, 10_000), help="Instead of a checkpoint: so many layers.")
@click.option(
    "--bitwidths",
    "--options",
    "bitwidths",
    type=_Bitwidths(),
    help="Options to draw from, such as 2,4,8.  [default: experiment's]",
)
@_which_configurations
@click.option("--config", type=click.Path(path_type=Path), help=_CONFIG_HELP)
@click.option("--out", type=click.Path(path_type=Path), help="Write them to a .json, .yaml or .csv file.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
def sample(**options: object) -> None:
    """Print the configurations that `run` would evaluate, with their costs, or write them to a file for it."""
    from qbw_eval.commands.sample import SampleOptions, sample_command

    sampling = _sampler_options(options)
    sample_command(SampleOptions(sampling=sampling, **options))  # type: ignore[arg-type]  # click has checked the types


@_with_options_of(run, without=("checkpoints", "resume", "dry_run", "trust_pickle", *_WHERE))
@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--every", type=_Duration(), default="5s", show_default=True, help="Time between two looks at DIR.")
@click.option(
    "--settle", type=_Duration(), default="5s", show_default=True, help="How long a file must have stayed the same."
)
@click.option("--once", is_flag=True, help="Evaluate what is ready now, and stop.")
@click.option("--until-idle", type=_Duration(), help="Stop when nothing new has come for so long, such as 10m.")
def watch(folder: Path, every: float, settle: float, once: bool, until_idle: float | None, **options: object) -> None:
    """Evaluate checkpoints as training writes them into DIR, until Ctrl-C.

    A file is read when it has stayed the same for a while, and evaluated when its checksums are right; a file that is
    written again is a new checkpoint. Training never waits. Times are such as 0.5s, 5s, 10m, 1h.
    """
    from qbw_eval.commands.evaluating import RunOptions
    from qbw_eval.commands.watch import WatchOptions, watch_command

    sampling = _sampler_options(options)
    run_options = RunOptions(
        checkpoints=(str(folder),),
        sampling=sampling,
        resume=True,
        dry_run=False,
        trust_pickle=(),
        **options,  # type: ignore[arg-type]  # click has checked the types
    )
    watch_command(
        WatchOptions(folder=folder, every=every, settle=settle, once=once, until_idle=until_idle, run=run_options)
    )


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Parent folder.")
@click.option("--model", help="For the seed's files: instead of the file's model, such as ResNet.")
@click.option("--model-variant", help="For the seed's files: instead of the file's, such as resnet18.")
@click.option("--quantization-method", help="Which of the file's methods, where it has several.")
@click.option("--data-root", type=click.Path(path_type=Path), help=_DATA_ROOT_HELP)
@click.option("--device", default="auto", show_default=True, help=f"Where to train: {_DEVICE_HELP}.")
@click.option("--overwrite", is_flag=True, help="Replace the checkpoints of an earlier training of this name.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def train(**options: object) -> None:
    """Train the network of an experiment file; writes OUT/<experiment>/checkpoints/epoch_NNN.pt.

    From one of the seed's files it writes that code's layout, OUT/<time>_<model>_<variant>/models/last_epoch.pth.
    """
    from qbw_eval.commands.train import TrainOptions, train_command

    train_command(TrainOptions(**options))  # type: ignore[arg-type]  # click has checked the types


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help=_CONFIG_HELP)
@_MAX_BYTES
@_TRUST
@click.option("--bits", metavar="BITS,BITS,...|FILE", help="Show each layer's costs at this configuration too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(**options: object) -> None:
    """Show a checkpoint's quantized layers, its bitwidth options and the range of every cost."""
    from qbw_eval.commands.inspect import InspectOptions, inspect_command

    inspect_command(InspectOptions(**options))  # type: ignore[arg-type]  # click has checked the types


_RECORDS = click.argument("records", type=click.Path(path_type=Path))


@cli.command()
@_RECORDS
@click.option("--quarantine", is_flag=True, help="Move bad files out of the way; the next run evaluates them again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(records: Path, quarantine: bool, as_json: bool) -> None:
    """Check every part of RECORDS: checksums, digests, schema, identities, costs, duplicates."""
    from qbw_eval.commands.upkeep import verify_command

    verify_command(records, quarantine=quarantine, as_json=as_json)


@cli.command()
@_RECORDS
@click.argument("new", type=click.Path(path_type=Path))
def compact(records: Path, new: Path) -> None:
    """Write the rows of RECORDS into few large parts in the folder NEW; RECORDS is not touched."""
    from qbw_eval.commands.upkeep import compact_command

    compact_command(records, new)


@cli.command()
@_RECORDS
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--wide", is_flag=True, help="Add a column for every layer's bits.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
def export(records: Path, file: Path, wide: bool, overwrite: bool) -> None:
    """Write all rows of RECORDS into FILE: .parquet, .csv, .jsonl or .duckdb."""
    from qbw_eval.commands.upkeep import export_command

    export_command(records, file, wide=wide, overwrite=overwrite)


@cli.command()
def schema() -> None:
    """Print the JSON schema of the experiment file, for editors that complete and check YAML."""
    import json

    from qbw_eval.experiment import experiment_json_schema

    click.echo(json.dumps(experiment_json_schema(), indent=2))


def _with_dependencies() -> None:
    """Run the command; where the extra `eval` is not installed, say so instead of showing a traceback."""
    try:
        cli(standalone_mode=False)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "pydantic", "yaml"):
            raise
        raise click.ClickException(
            f"{error.name} is not installed; evaluating needs it (reports do not): pip install 'qbw[eval]'"
        ) from None


def main() -> None:
    """Entry point of the console script."""
    sys.exit(exit_code_of("qbw-eval", _with_dependencies))
