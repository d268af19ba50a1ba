"""`validate_random_bitwidths`: its log lines, when it runs, what it leaves alone; and evaluating agrees with it."""

import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from qbw_eval import validate_random_bitwidths
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.configurations import BitwidthConfiguration, SamplerSettings, sample
from qbw_eval.data.errors import DataError
from qbw_eval.data.sources import load_split
from qbw_eval.engine.tally import Measurement, pack_bits
from qbw_eval.evaluate import EvaluationSettings, evaluate, prepare
from qbw_eval.experiment import Experiment
from qbw_eval.networks.resnet import SHAPES, ResNet
from qbw_eval.quantization.bitwidths import LayerError, get_bitwidths, set_bitwidths, trace_layers
from qbw_eval.quantization.layers import Quantizers
from qbw_eval.sampling.ranges import parse_range
from qbw_eval.training import EpochResult
from qbw_eval.validation import RandomBitwidthsValidation
from schemas.errors import UsageError


class BitsOut(nn.Linear):
    """A foreign layer: it has `curr_bitwidth` and nothing else of ours. Its output is its bits."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.curr_bitwidth = 8

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name for the argument
        return torch.full_like(input, self.curr_bitwidth)


class Toy(nn.Module):
    """Says class 0, with three quarters, of every x below (bits of `late` + bits of `early`) / 16, else class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early = BitsOut(), BitsOut()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        threshold = (self.early(x) + self.late(x)) / 16
        return torch.where(x < threshold, 1.0, -1.0) * torch.tensor([3.0, 1 / 3]).log() / 2


def toy_batches() -> list[tuple[Tensor, Tensor]]:
    """Eight samples x = 0, 1/8, ..., 7/8 of class 0, in batches of 5 and 3."""
    x = torch.arange(8.0)[:, None] / 8
    return list(zip(x.split([5, 3]), torch.zeros(8, dtype=torch.int64).split([5, 3]), strict=True))


def small_network() -> ResNet:
    torch.manual_seed(0)
    quantizers = Quantizers(options=(2, 4, 8))
    return ResNet(SHAPES["resnet8"], quantizers, width=4, in_channels=1, num_classes=5)


def small_batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(7 + index, 1, 8, 8, generator=generator), torch.randint(5, (7 + index,), generator=generator))
        for index in range(count)
    ]


# --- the seed document's lines --------------------------------------------------------------------------------------


def test_the_lines_are_the_seed_documents_word_for_word() -> None:
    lines: list[str] = []
    validate_random_bitwidths(Toy(), toy_batches(), num_configs=4, bitwidth_options=[2, 4, 8], seed=3, log=lines.append)
    # In forward order (early, late); below (8 + 4) / 16 lie 6 of the 8, below 1 all; a right answer costs ln(4/3), a
    # wrong one ln 4.
    assert [one.bitwidths for one in sample("iid", 2, (2, 4, 8), 4, 3)] == [(8, 4), (8, 8), (4, 4), (8, 2)]
    assert lines == [
        "Config 1/4: Acc=0.7500, Loss=0.5623, Avg Bitwidth=6.00",
        "Config 2/4: Acc=1.0000, Loss=0.2877, Avg Bitwidth=8.00",
        "Config 3/4: Acc=0.5000, Loss=0.8370, Avg Bitwidth=4.00",
        "Config 4/4: Acc=0.6250, Loss=0.6997, Avg Bitwidth=5.00",
        "",
        "Random Bitwidths Validation Statistics:",
        "  Accuracy - Mean: 0.7188, Min: 0.5000, Max: 1.0000, Std: 0.1849",
        "  Loss - Mean: 0.5967, Min: 0.2877, Max: 0.8370, Std: 0.2031",
        "  Bitwidth - Mean: 5.75, Min: 4.00, Max: 8.00, Std: 1.4790",
        "  Correlation of bitwidth and accuracy: 1.0000",
    ]


def test_every_line_has_the_seed_documents_form(demo_training: tuple[list[EpochResult], list[str]]) -> None:
    results, lines = demo_training
    number, two = r"-?\d+\.\d{4}", r"\d+\.\d{2}"
    forms = [rf"Config {index}/4: Acc={number}, Loss={number}, Avg Bitwidth={two}" for index in (1, 2, 3, 4)]
    forms += ["", "Random Bitwidths Validation Statistics:"]
    forms += [
        rf"  {what} - Mean: {number}, Min: {number}, Max: {number}, Std: {number}" for what in ("Accuracy", "Loss")
    ]
    forms += [rf"  Bitwidth - Mean: {two}, Min: {two}, Max: {two}, Std: {number}"]
    forms += [rf"  Correlation of bitwidth and accuracy: ({number}|undefined \(one of them does not vary\))"]
    assert len(lines) == len(forms) * len(results)
    for line, form in zip(lines, forms * len(results), strict=True):
        assert re.fullmatch(form, line), line


def test_the_seed_documents_example_gives_its_lines() -> None:
    """Up to the std of its statistics, which no definition gives from its lines; ours divides by N."""
    accuracies, losses = [0.8912, 0.8654, 0.9123, 0.8876], [0.2156, 0.2387, 0.1987, 0.2245]
    hundredfold = [1245, 832, 1876, 1421]  # the sum of 100 layers' bits
    validation = RandomBitwidthsValidation(
        layer_names=tuple(f"layer{index}" for index in range(100)),
        configurations=tuple(
            BitwidthConfiguration(
                bitwidths=(total // 100 + 1,) * (total % 100) + (total // 100,) * (100 - total % 100), index=index
            )
            for index, total in enumerate(hundredfold)
        ),
        measurements=tuple(
            Measurement(
                correct=round(accuracy * 10_000), num_samples=10_000, loss=loss, correct_mask=b"", agreement=None
            )
            for accuracy, loss in zip(accuracies, losses, strict=True)
        ),
    )
    assert list(validation.log_lines()) == [
        "Config 1/4: Acc=0.8912, Loss=0.2156, Avg Bitwidth=12.45",
        "Config 2/4: Acc=0.8654, Loss=0.2387, Avg Bitwidth=8.32",
        "Config 3/4: Acc=0.9123, Loss=0.1987, Avg Bitwidth=18.76",
        "Config 4/4: Acc=0.8876, Loss=0.2245, Avg Bitwidth=14.21",
        "",
        "Random Bitwidths Validation Statistics:",
        f"  Accuracy - Mean: 0.8891, Min: 0.8654, Max: 0.9123, Std: {np.std(accuracies):.4f}",
        f"  Loss - Mean: 0.2194, Min: 0.1987, Max: 0.2387, Std: {np.std(losses):.4f}",
        f"  Bitwidth - Mean: 13.44, Min: 8.32, Max: 18.76, Std: {np.std(hundredfold) / 100:.4f}",
        f"  Correlation of bitwidth and accuracy: {np.corrcoef(hundredfold, accuracies)[0, 1]:.4f}",
    ]


def test_print_is_the_default_log(capsys: pytest.CaptureFixture[str]) -> None:
    validate_random_bitwidths(Toy(), toy_batches(), num_configs=1, bitwidth_options=[8])
    assert capsys.readouterr().out.splitlines()[0] == "Config 1/1: Acc=1.0000, Loss=0.2877, Avg Bitwidth=8.00"


def test_a_correlation_of_what_does_not_vary_is_undefined() -> None:
    lines: list[str] = []
    validation = validate_random_bitwidths(Toy(), toy_batches(), bitwidth_options=[4], log=lines.append)
    assert validation is not None
    assert validation.correlation is None
    assert lines[-1] == "  Correlation of bitwidth and accuracy: undefined (one of them does not vary)"


def test_results_speak_of_layers_in_forward_order() -> None:
    validation = validate_random_bitwidths(
        Toy(), toy_batches(), num_configs=9, bitwidth_options=[2, 4, 8], log=lambda _line: None
    )
    assert validation is not None
    assert validation.layer_names == ("early", "late")
    assert validation.avg_bitwidths == [sum(one.bitwidths) / 2 for one in validation.configurations]
    assert validation.accuracies == [sum(x / 8 < sum(one.bitwidths) / 16 for x in range(8)) / 8
                                     for one in validation.configurations]  # fmt: skip
    assert validation.mean_accuracy == sum(validation.accuracies) / 9
    assert validation.mean_loss == pytest.approx(sum(validation.losses) / 9, rel=1e-15)
    assert validation.correlation == pytest.approx(torch.corrcoef(
        torch.tensor([validation.avg_bitwidths, validation.accuracies], dtype=torch.float64))[0, 1].item())  # fmt: skip


# --- when it runs ---------------------------------------------------------------------------------------------------


def config(**method: Any) -> dict[str, Any]:
    method = {"bitwidth_options": [2, 4], "validation_function": "random_bitwidths", **method}
    return {"quantization": {"enable": True, "my_method": method}, "random_bitwidths": {"num_bitwidths": 3}}


def untouchable() -> Iterator[tuple[Tensor, Tensor]]:
    raise AssertionError("the data were read")
    yield  # type: ignore[unreachable]  # this makes it a generator


@pytest.mark.parametrize(
    "off",
    [
        {**config(), "quantization": {**config()["quantization"], "enable": False}},
        {"quantization": {"my_method": config()["quantization"]["my_method"]}},
        {"quantization": None},
        {},
        config(validation_function="simple_validation"),
        config(validation_function=None),
    ],
)
def test_where_the_configuration_does_not_ask_for_it_nothing_runs(off: dict[str, Any]) -> None:
    lines: list[str] = []
    assert validate_random_bitwidths(Toy(), untouchable(), config=off, log=lines.append) is None
    assert lines == []


@pytest.mark.parametrize("key", ["num_bitwidths", "number_of_configs"])
@pytest.mark.parametrize("place", ["top level", "quantization"])
def test_the_number_of_configurations_is_accepted_under_both_names_at_both_places(key: str, place: str) -> None:
    settings = config()
    del settings["random_bitwidths"]
    (settings if place == "top level" else settings["quantization"])["random_bitwidths"] = {key: 3, "seed": 5}
    validation = validate_random_bitwidths(Toy(), toy_batches(), config=settings, log=lambda _line: None)
    assert validation is not None
    assert list(validation.configurations) == sample("iid", 2, (2, 4), 3, 5)


def test_a_configuration_that_names_no_number_leaves_the_arguments() -> None:
    settings = config()
    del settings["random_bitwidths"]
    validation = validate_random_bitwidths(
        Toy(), toy_batches(), num_configs=2, sampler="uniform", config=settings, log=lambda _line: None
    )
    assert validation is not None
    assert [one.bitwidths for one in validation.configurations] == [(2, 2), (4, 4)]


@pytest.mark.parametrize(
    ("asked", "sampler", "count", "told"),
    [
        ({"sampler": "stratified", "num_bitwidths": 7}, "stratified", 7, SamplerSettings()),
        (
            {"sampler": "stratified", "num_bitwidths": 7, "cost": "bit_ops"},
            "stratified",
            7,
            SamplerSettings(cost="bit_ops"),
        ),
        (
            {"sampler": None, "num_bitwidths": 3, "range": "weight_bytes=:2000", "cost": None, "base": None},
            "iid",
            3,
            SamplerSettings(range=parse_range("weight_bytes=:2000")),
        ),
        ({"sampler": "one-layer", "num_bitwidths": 3, "base": 4}, "one-layer", None, SamplerSettings(base=4)),
        ({"sampler": "uniform", "num_bitwidths": 1}, "uniform", None, SamplerSettings()),
    ],
)
def test_training_draws_what_the_experiments_sampler_draws(
    asked: dict[str, Any], sampler: str, count: int | None, told: SamplerSettings
) -> None:
    settings = {**config(bitwidth_options=[2, 4, 8]), "random_bitwidths": asked}
    network, batches = small_network(), small_batches()
    validation = validate_random_bitwidths(network, batches, config=settings, log=lambda _line: None)
    assert validation is not None
    table = trace_layers(network, batches[0][0][:1])
    assert list(validation.configurations) == sample(sampler, table, (2, 4, 8), count, 0, told)
    assert len(validation.measurements) == len(validation.configurations) > 2


def test_what_a_sampler_cannot_do_in_training_is_a_sentence() -> None:
    settings = {**config(), "random_bitwidths": {"range": "avg_bits"}}
    with pytest.raises(UsageError, match=r"^random_bitwidths\.range: expected a cost and its lowest and highest value"):
        validate_random_bitwidths(Toy(), toy_batches(), config=settings, log=lambda _line: None)


class Scale(nn.Module):
    """A quantized layer whose weight is one number a channel, which nobody here knows how to count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))
        self.curr_bitwidth = 8

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2, 3))[:, None] * self.weight * self.curr_bitwidth


def test_layers_that_cannot_be_counted_are_validated_by_samplers_that_need_not() -> None:
    network, batches, told = Scale(), small_batches(), SamplerSettings(cost="weight_bytes")
    words: dict[str, Any] = {"bitwidth_options": [2, 4], "sampler": "stratified", "log": lambda _line: None}
    validation = validate_random_bitwidths(network, batches, **words)
    assert validation is not None
    assert [one.bitwidths for one in validation.configurations] == [(2,), (4,)]
    with pytest.raises(UsageError, match=r"^cost weight_bytes: only the number of layers is known here"):
        validate_random_bitwidths(network, batches, sampler_settings=told, **words)


def test_a_method_trained_at_one_bitwidth_is_validated_there() -> None:
    validation = validate_random_bitwidths(
        Toy(), toy_batches(), config=config(bitwidth_options=[2, 4, 8], bitwidth=4), log=lambda _line: None
    )
    assert validation is not None
    assert [one.bitwidths for one in validation.configurations] == [(4, 4)]


def test_of_several_methods_one_must_be_chosen() -> None:
    settings = config()
    settings["quantization"]["other"] = {"bitwidth_options": [8], "validation_function": "random_bitwidths"}
    with pytest.raises(UsageError) as error:
        validate_random_bitwidths(Toy(), untouchable(), config=settings)
    assert str(error.value) == "quantization_method: expected one of ['my_method', 'other'], found None"
    for chosen in ({"config": settings, "quantization_method": "other"},
                   {"config": {**settings, "quantization_method": "other"}}):  # fmt: skip
        validation = validate_random_bitwidths(Toy(), toy_batches(), log=lambda _line: None, **chosen)
        assert validation is not None
        assert [one.bitwidths for one in validation.configurations] == [(8, 8)]


def test_no_batches_no_layers_and_no_options_are_errors() -> None:
    with pytest.raises(UsageError, match=r"^validate_random_bitwidths: there are no batches to validate on$"):
        validate_random_bitwidths(Toy(), [], bitwidth_options=[2])
    with pytest.raises(LayerError, match=r"^no quantized layer takes part in the forward pass$"):
        validate_random_bitwidths(nn.Flatten(), small_batches(), bitwidth_options=[2])
    with pytest.raises(LayerError, match=r"^the quantized layers share no `bitwidth_options`; say which"):
        validate_random_bitwidths(Toy(), toy_batches())


@pytest.mark.parametrize(("num_configs", "options"), [(0, [2, 4]), (4, [])])
def test_no_configurations_are_an_error(num_configs: int, options: list[int]) -> None:
    lines: list[str] = []
    with pytest.raises(UsageError) as error:
        validate_random_bitwidths(
            Toy(), toy_batches(), num_configs=num_configs, bitwidth_options=options, log=lines.append
        )
    assert str(error.value) == (
        "validate_random_bitwidths: expected at least one configuration and one bitwidth option, "
        f"found num_configs {num_configs} and bitwidth_options {options}"
    )
    assert lines == []


# --- what it computes -----------------------------------------------------------------------------------------------


def naive_loop(network: nn.Module, batches: list[tuple[Tensor, Tensor]], configurations: Any, names: Any) -> list[Any]:
    """Configuration by configuration, batch by batch, as anybody would write it."""
    results = []
    network.eval()
    for configuration in configurations:
        for name, bits in zip(names, configuration.bitwidths, strict=True):
            network.get_submodule(name).set_bitwidth(bits)
        correct, loss, hits = 0, 0.0, []
        with torch.no_grad():
            for inputs, labels in batches:
                logits = network(inputs)
                hits.append(logits.argmax(dim=1) == labels)
                correct += int(hits[-1].sum())
                loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        samples = sum(len(labels) for _, labels in batches)
        results.append((correct, samples, loss / samples, pack_bits(torch.cat(hits))))
    return results


def test_it_equals_a_naive_loop_over_configurations_and_batches() -> None:
    network, batches = small_network(), small_batches()
    validation = validate_random_bitwidths(network, batches, num_configs=12, seed=2, log=lambda _line: None)
    assert validation is not None
    assert list(validation.configurations) == sample("iid", 8, (2, 4, 8), 12, 2)
    expected = naive_loop(network, batches, validation.configurations, validation.layer_names)
    for measurement, (correct, samples, loss, mask) in zip(validation.measurements, expected, strict=True):
        assert (measurement.correct, measurement.num_samples, measurement.correct_mask) == (correct, samples, mask)
        assert measurement.loss == pytest.approx(loss, rel=1e-14)
    assert len({measurement.correct_mask for measurement in validation.measurements}) > 1


def test_the_data_are_read_once_and_every_batch_meets_every_configuration() -> None:
    network, read = Toy(), []

    def once() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in toy_batches():
            read.append(len(batch[1]))
            yield batch

    validation = validate_random_bitwidths(network, once(), bitwidth_options=[2, 4], log=lambda _line: None)
    assert validation is not None
    assert read == [5, 3]
    assert network.calls == [1, 5, 5, 5, 5, 3, 3, 3, 3]  # one sample to see the order of the layers
    assert [measurement.num_samples for measurement in validation.measurements] == [8] * 4


def test_a_list_a_generator_and_a_data_loader_give_the_same() -> None:
    network, batches = small_network(), small_batches()
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=10)
    masks = []
    for source in (batches, (batch for batch in batches), loader):
        validation = validate_random_bitwidths(network, source, log=lambda _line: None)
        assert validation is not None
        masks.append([(measurement.correct, measurement.correct_mask) for measurement in validation.measurements])
    assert masks[0] == masks[1] == masks[2]


def test_one_hot_labels_give_the_same_as_class_numbers() -> None:
    network, batches = small_network(), small_batches()
    classes = 1 + max(int(labels.max()) for _, labels in batches)
    one_hot = [(inputs, F.one_hot(labels, classes).float()) for inputs, labels in batches]
    numbers, rows = (
        validate_random_bitwidths(network, source, log=lambda _line: None) for source in (batches, one_hot)
    )
    assert numbers is not None
    assert numbers == rows
    soft = [(inputs, labels * 0.9) for inputs, labels in one_hot]
    with pytest.raises(DataError, match=r"^validate_random_bitwidths: labels of shape .* row 0 has the value 0\.9; "):
        validate_random_bitwidths(network, soft, log=lambda _line: None)


# --- what it leaves alone -------------------------------------------------------------------------------------------


def state_of(network: nn.Module) -> Any:
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return get_bitwidths(network), [module.training for module in network.modules()], tensors


@pytest.mark.parametrize("source", ["list", "loader", "shuffling loader"])
def test_bits_modes_statistics_and_random_generators_are_left_as_they_were(source: str) -> None:
    network, batches = small_network().train(), small_batches()
    network.bn1.eval()
    names = list(get_bitwidths(network))
    set_bitwidths(network, {name: (2, 4, 8)[index % 3] for index, name in enumerate(names)})
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=8, shuffle=source == "shuffling loader")
    bits, modes, tensors = state_of(network)
    torch.manual_seed(123)
    generator = torch.get_rng_state()
    validate_random_bitwidths(network, batches if source == "list" else loader, log=lambda _line: None)
    assert torch.equal(torch.get_rng_state(), generator)
    bits_after, modes_after, tensors_after = state_of(network)
    assert (bits_after, modes_after) == (bits, modes)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in tensors_after.items())
    assert all(parameter.grad is None for parameter in network.parameters())
    network(inputs).sum().backward()  # and it can still be trained


def test_a_failure_half_way_leaves_the_network_as_it_was_even_while_the_error_is_held() -> None:
    network = small_network().train()
    bits, modes, _ = state_of(network)
    wrong_labels = [(inputs, labels + 5) for inputs, labels in small_batches(1)]
    with pytest.raises(IndexError) as held:
        validate_random_bitwidths(network, [*small_batches(1), *wrong_labels], log=lambda _line: None)
    assert "Target" in str(held.value)
    assert state_of(network)[:2] == (bits, modes)


# --- training and evaluating agree ----------------------------------------------------------------------------------


def test_evaluating_a_checkpoint_gives_the_very_accuracies_that_training_logged(
    demo_training: tuple[list[EpochResult], list[str]], demo_experiment: Experiment
) -> None:
    results, lines = demo_training
    for result in (results[0], results[-1]):
        checkpoint = read_checkpoint(result.checkpoint)
        asked = demo_experiment.random_bitwidths
        settings = EvaluationSettings(
            sampler=asked.sampler or "iid",  # which training draws with, where the experiment does not say
            num_configs=asked.num_bitwidths,
            seed=asked.seed,
            bitwidths=None,
            batch_size=demo_experiment.data.batch_size,
            device=torch.device("cpu"),
            engine="auto",
        )
        evaluation = prepare(checkpoint, load_split(checkpoint.experiment.data, "validation"), settings)
        (table,) = evaluate(evaluation, evaluation.plan.chunks(set()))
        rows = table.to_pylist()
        assert len(rows) == 4
        logged = lines[10 * result.epoch : 10 * result.epoch + 4]
        assert logged == [
            f"Config {number}/4: Acc={row['accuracy']:.4f}, Loss={row['loss']:.4f}, "
            f"Avg Bitwidth={row['avg_bitwidth']:.2f}"
            for number, row in enumerate(rows, start=1)
        ]
        # The logged four digits name the integers: one sample of 797 is 0.0013.
        accuracies = [float(re.search(r"Acc=([\d.]+)", line)[1]) for line in logged]  # type: ignore[index]  # it matched
        assert [round(accuracy * 797) for accuracy in accuracies] == [row["correct"] for row in rows]
        assert {row["num_samples"] for row in rows} == {797}
        assert checkpoint.val_acc == result.val_acc == statistics.fmean(row["correct"] / 797 for row in rows)


def test_evaluating_does_not_depend_on_the_batch_size_where_counts_are_concerned(demo_checkpoint: Path) -> None:
    checkpoint = read_checkpoint(demo_checkpoint)
    split = load_split(checkpoint.experiment.data, "validation").limited(100)
    rows = []
    for batch_size in (100, 32):
        settings = EvaluationSettings(
            sampler="uniform", num_configs=3, seed=0, bitwidths=None, batch_size=batch_size,
            device=torch.device("cpu"), engine="reference",
        )  # fmt: skip
        evaluation = prepare(checkpoint, split, settings)
        (table,) = evaluate(evaluation, evaluation.plan.chunks(set()))
        rows.append(table.select(["record_id", "bitwidths", "num_samples"]).to_pylist())
    assert rows[0] == rows[1]
