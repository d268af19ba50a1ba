"""Random bitwidths validation inside anybody's training loop (the seed document's `validate_random_bitwidths`)."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from qbw_eval.configurations import PLAIN, SEEDED, BitwidthConfiguration, SamplerSettings, sample
from qbw_eval.cost import average_bitwidth
from qbw_eval.data.batches import Batch
from qbw_eval.data.labels import class_numbers
from qbw_eval.engine.choose import choose_engine
from qbw_eval.engine.tally import Measurement
from qbw_eval.evaluate import measure
from qbw_eval.layer_table import LayerTable
from qbw_eval.memory import MemoryBudget, free_memory
from qbw_eval.nested import first_sample, to_device
from qbw_eval.quantization.bitwidths import common_options, quantized_layers, trace_layers, trace_order
from qbw_eval.sampling.ranges import parse_range
from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RandomBitwidthsValidation:
    """What random configurations scored.

    Attributes:
        layer_names: quantized layers in forward order.
        configurations: N configurations over those layers.
        measurements: their N results.
    """

    layer_names: tuple[str, ...]
    configurations: tuple[BitwidthConfiguration, ...]
    measurements: tuple[Measurement, ...]

    @property
    def accuracies(self) -> list[float]:
        """Accuracy per configuration."""
        return [measurement.accuracy for measurement in self.measurements]

    @property
    def losses(self) -> list[float]:
        """Mean cross-entropy per configuration, in nats."""
        return [measurement.loss for measurement in self.measurements]

    @property
    def avg_bitwidths(self) -> list[float]:
        """Average bitwidth per configuration, as `get_average_bitwidth` would return it."""
        return [average_bitwidth(configuration.bitwidths) for configuration in self.configurations]

    @property
    def mean_accuracy(self) -> float:
        """Mean over configurations."""
        return statistics.fmean(self.accuracies)

    @property
    def mean_loss(self) -> float:
        """Mean over configurations, in nats."""
        return statistics.fmean(self.losses)

    @property
    def correlation(self) -> float | None:
        """Pearson correlation of average bitwidth and accuracy; None where one of them does not vary."""
        if min(len(set(self.avg_bitwidths)), len(set(self.accuracies))) < 2:
            return None
        return statistics.correlation(self.avg_bitwidths, self.accuracies)

    def log_lines(self) -> Iterator[str]:
        """Yield the seed document's log lines, and the correlation it promises."""
        results = zip(self.accuracies, self.losses, self.avg_bitwidths, strict=True)
        for number, (accuracy, loss, bitwidth) in enumerate(results, start=1):
            place = f"Config {number}/{len(self.configurations)}"
            yield f"{place}: Acc={accuracy:.4f}, Loss={loss:.4f}, Avg Bitwidth={bitwidth:.2f}"
        yield ""
        yield "Random Bitwidths Validation Statistics:"
        yield f"  Accuracy - {_spread(self.accuracies, 4)}"
        yield f"  Loss - {_spread(self.losses, 4)}"
        yield f"  Bitwidth - {_spread(self.avg_bitwidths, 2)}"
        correlation = "undefined (one of them does not vary)" if self.correlation is None else f"{self.correlation:.4f}"
        yield f"  Correlation of bitwidth and accuracy: {correlation}"


def _spread(values: Sequence[float], decimals: int) -> str:
    """Return the seed's line of mean, extremes and population std; the std always has 4 decimals."""
    mean = statistics.fmean(values)
    std = math.sqrt(statistics.fmean((value - mean) ** 2 for value in values))  # pstdev knows no NaN and no infinity
    lowest, highest = (math.nan, math.nan) if math.isnan(std) else (min(values), max(values))
    return f"Mean: {mean:.{decimals}f}, Min: {lowest:.{decimals}f}, Max: {highest:.{decimals}f}, Std: {std:.4f}"


def validate_random_bitwidths(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    *,
    num_configs: int = 4,
    bitwidth_options: Sequence[int] | None = None,
    sampler: str = "iid",
    seed: int = 0,
    sampler_settings: SamplerSettings = PLAIN,
    config: Mapping[str, object] | None = None,
    quantization_method: str | None = None,
    log: Callable[[str], object] = print,
) -> RandomBitwidthsValidation | None:
    """Score random bitwidth configurations of a network and log the seed document's lines.

    Each batch meets every configuration, so the data are read once. The network's bits, its train/eval mode and torch's
    random generators are left as they were.

    Args:
        model: a network whose quantized layers have an integer `curr_bitwidth`.
        batches: (inputs, labels (N,), anything else) such as a DataLoader yields; labels may be one-hot (N, classes);
            inputs are what the network takes: a tensor (N, ...), or dicts, lists and tuples of such tensors. They are
            moved to the network's device.
        num_configs: how many configurations; the seed document advises at least 4 or 5.
        bitwidth_options: what to draw from; the layers' common `bitwidth_options` where None.
        sampler: "iid", "stratified", "uniform" or another one, see `configurations.sample`.
        seed: of the sampler; the same seed gives the same configurations every epoch.
        sampler_settings: what else the sampler is told.
        config: an experiment file as a mapping. With it, `num_configs` (for samplers that draw; the others give all
            they have), `bitwidth_options`, `sampler`, `seed` and `sampler_settings` are taken from it where it has
            them, and nothing runs unless quantization is enabled and the method's `validation_function` is
            "random_bitwidths".
        quantization_method: which of `config`'s methods, where it has several.
        log: called with each line.

    Returns:
        The results, or None where `config` does not ask for this validation.

    Raises:
        UsageError: there are no batches or no configurations, there is no such sampler, it cannot do what it is told,
            or `config` has several methods and none is chosen.
        LayerError: the network has no quantized layers, or they share no options.
        DataError: labels of two dimensions are not one-hot.
    """
    count: int | None = num_configs
    if config is not None:
        method = _active_method(config, quantization_method)
        if method is None:
            return None
        asked = _random_bitwidths(config)
        count = int(asked.get("num_bitwidths", asked.get("number_of_configs", num_configs)))  # type: ignore[call-overload]  # anybody's YAML
        sampler, seed = str(asked.get("sampler", sampler)), int(asked.get("seed", seed))  # type: ignore[call-overload]  # anybody's YAML
        if "sampler" in asked and sampler not in SEEDED:
            count = None
        sampler_settings = _sampler_settings(asked, sampler, sampler_settings)
        if bitwidth_options is None:
            bitwidth_options = _trained_options(method)
    # A DataLoader draws from torch's generator, shuffling or not: without this, validating would change the training.
    with torch.random.fork_rng(devices=[]):
        validation = _validation(model, batches, count, bitwidth_options, sampler, seed, sampler_settings)
    for line in validation.log_lines():
        log(line)
    return validation


def _validation(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    num_configs: int | None,
    bitwidth_options: Sequence[int] | None,
    sampler: str,
    seed: int,
    sampler_settings: SamplerSettings,
) -> RandomBitwidthsValidation:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    on_device = (Batch(to_device(inputs, device), _labels(labels).to(device)) for inputs, labels, *_ in batches)
    first = next(on_device, None)
    if first is None:
        raise UsageError("validate_random_bitwidths: there are no batches to validate on")
    layer_names = tuple(trace_order(model, first_sample(first.inputs)))
    options = common_options(model) if bitwidth_options is None else bitwidth_options
    layers = _layers(model, layer_names, first_sample(first.inputs), sampler_settings)
    configurations = sample(sampler, layers, options, num_configs, seed, sampler_settings)
    if not configurations:
        raise UsageError(
            "validate_random_bitwidths: expected at least one configuration and one bitwidth option, "
            f"found num_configs {num_configs} and bitwidth_options {list(options)}"
        )
    engine = choose_engine(
        "auto",
        model,
        layer_names,
        first_sample(first.inputs),
        options,
        cache_bytes=MemoryBudget(free_memory(device) // 4).caches,
    ).engine
    return RandomBitwidthsValidation(
        layer_names=layer_names,
        configurations=tuple(configurations),
        measurements=tuple(measure(engine, chain([first], on_device), configurations)),
    )


def _layers(model: nn.Module, layer_names: Sequence[str], inputs: Any, settings: SamplerSettings) -> LayerTable | int:
    """Return the quantized layers in forward order where the sampler must know their sizes, else how many there are.

    Anybody's layer need not have weights as ours do; a sampler that counts them says then that it cannot.
    """
    weights = [getattr(layer, "weight", None) for layer in quantized_layers(model).values()]
    like_ours = all(isinstance(weight, Tensor) and weight.dim() >= 2 for weight in weights)
    return trace_layers(model, inputs) if settings.needs_sizes and like_ours else len(layer_names)


def _labels(labels: Tensor) -> Tensor:
    """Return (N,) class numbers as int64, whatever whole numbers or one-hot rows they came as."""
    numbers = class_numbers(labels, "validate_random_bitwidths")
    return numbers if numbers.is_floating_point() else numbers.long()


def _active_method(config: Mapping[str, object], name: str | None) -> Mapping[str, object] | None:
    """Return the quantization method whose validation is random bitwidths; None where there is nothing to do."""
    quantization = config.get("quantization")
    if not isinstance(quantization, Mapping) or not quantization.get("enable"):
        return None
    methods = {key: value for key, value in quantization.items() if isinstance(value, Mapping)}
    methods.pop("random_bitwidths", None)
    chosen = name or config.get("quantization_method") or (next(iter(methods)) if len(methods) == 1 else None)
    if chosen not in methods:
        raise UsageError(f"quantization_method: expected one of {sorted(methods)}, found {chosen!r}")
    method = methods[chosen]
    return method if method.get("validation_function") == "random_bitwidths" else None


def _random_bitwidths(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the settings of random bitwidths: at the top level (seed document) or under quantization (its code)."""
    quantization = config["quantization"]
    assert isinstance(quantization, Mapping)
    found = config.get("random_bitwidths", quantization.get("random_bitwidths"))
    # A setting without a value is one that was left out.
    return {key: value for key, value in found.items() if value is not None} if isinstance(found, Mapping) else {}


def _sampler_settings(asked: Mapping[str, object], sampler: str, otherwise: SamplerSettings) -> SamplerSettings:
    """Return what the sampler is told by the settings of random bitwidths, and otherwise where they are silent."""
    try:
        told = replace(otherwise, range=parse_range(str(asked["range"]))) if "range" in asked else otherwise
    except ValueError as error:
        raise UsageError(f"random_bitwidths.range: {error}") from None
    if "cost" in asked and sampler == "stratified":
        told = replace(told, cost=str(asked["cost"]))
    if "base" in asked and sampler == "one-layer":
        told = replace(told, base=int(asked["base"]))  # type: ignore[call-overload]  # anybody's YAML
    return told


def _trained_options(method: Mapping[str, object]) -> Sequence[int] | None:
    """Return what a method trains at: one bitwidth (vanilla) or its options; None where it does not say."""
    bitwidth, options = method.get("bitwidth"), method.get("bitwidth_options")
    if isinstance(bitwidth, int):
        return [bitwidth]
    return options if isinstance(options, Sequence) else None
