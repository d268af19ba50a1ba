"""Training: reproducible to the byte, at the bitwidths asked for, and what its checkpoints hold."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.data.fit import with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split
from qbw_eval.evaluate import EvaluationSettings, evaluate, prepare
from qbw_eval.experiment import Experiment, experiment_from_mapping
from qbw_eval.networks.build import build_network, load_network
from qbw_eval.quantization.bitwidths import get_bitwidths, quantized_layers, set_bitwidths
from qbw_eval.training import EpochResult, TrainingError, initialize_activation_steps, train

CPU = torch.device("cpu")


def quadrants(count: int, seed: int) -> Split:
    """Noisy 6x6 images whose class is the bright quadrant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    inputs = torch.randn(count, 1, 6, 6, generator=generator) * 0.5
    for image, label in zip(inputs, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[0, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 1
    return Split(dataset="quadrants", name="train", inputs=inputs, labels=labels)


TRAIN, VALIDATION = quadrants(90, 0), quadrants(40, 1)


def experiment(
    *, method: Mapping[str, object] | None = None, training: Mapping[str, object] | None = None, **model: object
) -> Experiment:
    method = {"bitwidth_options": [2, 4, 8], "activation_quantization": "pact", **(method or {})}
    settings = {
        "experiment": "tiny",
        "model": {"name": "resnet8", "width": 4, **model},
        "data": {"source": "digits"},
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, **(training or {})},
        "quantization": {"my_method": method},
        "random_bitwidths": {"num_bitwidths": 3},
    }
    return with_data_shape(experiment_from_mapping(settings, "test"), TRAIN)


def trained(
    settings: Experiment, folder: Path, log: Callable[[str], object] = lambda _line: None, data: Split = TRAIN
) -> list[EpochResult]:
    folder.mkdir()
    return list(train(settings, data, VALIDATION, folder, device=CPU, log=log))


def state_of(result: EpochResult) -> Mapping[str, Tensor]:
    return read_checkpoint(result.checkpoint).state


# --- reproducible ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["pact", "lsq"])
def test_equal_settings_give_byte_identical_checkpoints(tmp_path: Path, activation: str) -> None:
    settings = experiment(
        method={
            "weight_quantization": "lsq" if activation == "lsq" else "dorefa",
            "activation_quantization": activation,
        }
    )
    first = trained(settings, tmp_path / "first")
    torch.manual_seed(999)  # whatever torch's generator did before does not matter
    torch.rand(7)
    second = trained(settings, tmp_path / "second")
    assert [one.checkpoint.read_bytes() for one in first] == [one.checkpoint.read_bytes() for one in second]
    assert [(one.val_acc, one.val_loss, one.train_loss) for one in first] == [
        (one.val_acc, one.val_loss, one.train_loss) for one in second
    ]
    other = trained(
        settings.model_copy(update={"training": settings.training.model_copy(update={"seed": 1})}), tmp_path / "other"
    )
    assert not torch.equal(state_of(other[0])["fc.weight"], state_of(first[0])["fc.weight"])


def test_how_often_it_is_validated_does_not_change_what_is_learned(tmp_path: Path) -> None:
    few, many = experiment(), experiment()
    many = many.model_copy(update={"random_bitwidths": many.random_bitwidths.model_copy(update={"num_bitwidths": 9})})
    states = [state_of(trained(one, tmp_path / name)[-1]) for one, name in ((few, "few"), (many, "many"))]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# --- at the bitwidths asked for -------------------------------------------------------------------------------------

BATCHES = math.ceil(len(TRAIN) / 16)


def batches_seen(result: EpochResult) -> dict[str, list[int]]:
    """Return, per switchable batch norm, how many batches each bitwidth's statistics have seen, ascending."""
    seen: dict[str, list[tuple[int, int]]] = {}
    for name, tensor in state_of(result).items():
        norm, _, rest = name.partition(".bn_dict.")
        if rest.endswith("num_batches_tracked"):
            seen.setdefault(norm, []).append((int(rest.split(".")[0]), int(tensor)))
    return {norm: [count for _, count in sorted(counts)] for norm, counts in seen.items()}


def test_vanilla_training_sees_one_bitwidth_only(tmp_path: Path) -> None:
    method = {
        "training_method": "vanilla_single_precision_training",
        "bitwidth": 4,
        "weight_quantization": "lsq",
        "activation_quantization": "lsq",
        "switchable_clipping": True,
    }
    lines: list[str] = []
    first, last = trained(experiment(method=method, batch_norm="switchable"), tmp_path / "out", lines.append)
    seen = batches_seen(last)
    assert len(seen) == 8
    assert all(counts == [0, 2 * BATCHES, 0] for counts in seen.values())
    steps = [name for name in state_of(last) if name.endswith("step_size")]
    assert len(steps) == 16
    for name in steps:
        assert (state_of(first)[name] == state_of(last)[name]).tolist() == [True, False, True]
    configurations = [line for line in lines if line.startswith("Config")]
    assert len(configurations) == 2  # one an epoch: there is no other configuration
    assert all(re.fullmatch(r"Config 1/1: .*, Avg Bitwidth=4\.00", line) for line in configurations)


def test_joint_training_sees_every_batch_at_as_many_random_configurations_as_asked(tmp_path: Path) -> None:
    settings = experiment(training={"configurations_per_batch": 3, "epochs": 1}, batch_norm="switchable")
    seen = batches_seen(trained(settings, tmp_path / "out")[0])
    assert len(seen) == 8
    assert all(sum(counts) == 3 * BATCHES and min(counts) > 0 for counts in seen.values())
    assert len({tuple(counts) for counts in seen.values()}) > 1  # layers draw their bits apart


def test_without_quantization_every_layer_is_trained_and_validated_at_32_bits(tmp_path: Path) -> None:
    settings = experiment()
    off = settings.model_copy(update={"quantization": settings.quantization.model_copy(update={"enable": False})})
    lines: list[str] = []
    results = trained(off, tmp_path / "out", lines.append)
    assert len(lines) == 2
    assert lines[-1] == f"Validation: Acc={results[-1].val_acc:.4f}, Loss={results[-1].val_loss:.4f}, Bitwidth=32"
    assert set(get_bitwidths(load_network(off, state_of(results[-1]), "test")).values()) == {32}


@pytest.mark.parametrize(
    ("method", "bits"),
    [({}, 8), ({"training_method": "vanilla_single_precision_training", "bitwidth": 2}, 2)],
    ids=["joint: the largest", "vanilla: its own"],
)
def test_simple_validation_scores_one_bitwidth(tmp_path: Path, method: dict[str, object], bits: int) -> None:
    lines: list[str] = []
    settings = experiment(method={"validation_function": "simple_validation", **method}, training={"epochs": 1})
    (result,) = trained(settings, tmp_path / "out", lines.append)
    assert lines == [f"Validation: Acc={result.val_acc:.4f}, Loss={result.val_loss:.4f}, Bitwidth={bits}"]
    network = load_network(settings, state_of(result), "test")
    set_bitwidths(network, dict.fromkeys(get_bitwidths(network), bits))
    with torch.no_grad():
        correct = int((network(VALIDATION.inputs).argmax(dim=1) == VALIDATION.labels).sum())
    assert result.val_acc == correct / 40


# --- it learns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ({"weight_quantization": "lsq", "activation_quantization": "lsq", "switchable_clipping": True}, {}),
        ({"weight_quantization": "lsq", "activation_quantization": "lsq"}, {"batch_norm": "switchable"}),
        ({"activation_quantization": "pact", "switchable_clipping": False}, {"quantize_first_and_last": True}),
        ({"weight_quantization": "dorefa_scaled", "activation_quantization": "dorefa"}, {"batch_norm": "switchable"}),
        ({"bitwidth_options": [1, 32], "activation_quantization": "dorefa"}, {"batch_norm": "switchable"}),
    ],
    ids=["lsq", "lsq, switchable batch norm", "pact shared, first and last", "dorefa_scaled", "1 and 32 bits"],
)
def test_the_loss_falls_with_every_quantizer(tmp_path: Path, method: dict[str, object], model: dict[str, Any]) -> None:
    results = trained(
        experiment(method=method, training={"epochs": 6, "learning_rate": 2e-2}, **model), tmp_path / "out"
    )
    losses = [result.train_loss for result in results]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.7 * losses[0], losses
    before = build_network_again(experiment(method=method, **model))
    learned = [name for name in state_of(results[-1]) if name.endswith((".alpha", ".step_size"))]
    assert all(not torch.equal(state_of(results[-1])[name], before[name]) for name in learned)
    assert bool(learned) is ("pact" in method.values() or "lsq" in method.values())


def build_network_again(settings: Experiment) -> Mapping[str, Tensor]:
    torch.manual_seed(settings.training.seed)
    return build_network(settings).state_dict()


def test_a_loss_that_is_no_number_stops_training_with_a_remedy(tmp_path: Path) -> None:
    settings = experiment(training={"learning_rate": 1e30})
    with pytest.raises(TrainingError) as error:
        trained(settings, tmp_path / "out")
    assert str(error.value) == ("epoch 1: the training loss is nan; lower training.learning_rate and train again")
    assert list((tmp_path / "out").iterdir()) == []


# --- LSQ's steps ----------------------------------------------------------------------------------------------------


def test_activation_steps_start_from_what_each_layer_receives_in_full_precision() -> None:
    settings = experiment(method={"activation_quantization": "lsq", "switchable_clipping": True})
    network = build_network(settings).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    initialize_activation_steps(network, TRAIN.inputs[:16])
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "quantize_a" not in name)
    assert set(get_bitwidths(network).values()) == {8}
    assert all(module.training for module in network.modules())
    with torch.no_grad():  # the first layer receives the unquantized stem's output
        x = torch.relu(network.eval().bn1(network.conv1(TRAIN.inputs[:16])))
    mean = x.abs().mean().item()
    expected = [2 * mean / math.sqrt(2**bits - 1) for bits in (2, 4, 8)]
    assert after["layer1.0.conv1.quantize_a.step_size"].tolist() == pytest.approx(expected, rel=1e-6)


def test_training_starts_from_those_steps(tmp_path: Path) -> None:
    settings = experiment(
        method={"activation_quantization": "lsq", "switchable_clipping": True},
        training={"epochs": 1, "learning_rate": 1e-12},  # stays where it starts
    )
    (result,) = trained(settings, tmp_path / "out")
    torch.manual_seed(settings.training.seed)
    network = build_network(settings)
    initialize_activation_steps(network, TRAIN.inputs[:16])
    for name, tensor in network.state_dict().items():
        if name.endswith("quantize_a.step_size"):
            torch.testing.assert_close(state_of(result)[name], tensor)
            assert (tensor < 0.9).all()  # what `StepSize` starts at is 1


def test_steps_from_a_checkpoint_are_not_overwritten_by_the_first_batch(tmp_path: Path) -> None:
    settings = experiment(
        method={"weight_quantization": "lsq", "activation_quantization": "lsq", "switchable_clipping": True},
        training={"epochs": 1},
    )
    (result,) = trained(settings, tmp_path / "out")
    network = load_network(settings, state_of(result), "test")
    steps = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.endswith("step_size")}
    assert len(steps) == 2 * len(quantized_layers(network))
    for bits in (2, 8, 32):
        set_bitwidths(network, dict.fromkeys(get_bitwidths(network), bits))
        for training in (False, True):
            network.train(training)(VALIDATION.inputs * 50)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in steps.items())
    assert all(torch.equal(state_of(result)[name], tensor) for name, tensor in steps.items())


# --- what is stored -------------------------------------------------------------------------------------------------


def test_a_checkpoint_has_the_seeds_keys_and_describes_itself(tmp_path: Path) -> None:
    settings = experiment()
    results = trained(settings, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["epoch_001.pt", "epoch_002.pt"]
    for epoch, result in enumerate(results):
        assert result.checkpoint == tmp_path / "out" / f"epoch_{epoch + 1:03d}.pt"
        content = torch.load(result.checkpoint, weights_only=True)
        assert list(content) == [
            "epoch",
            "model_state_dict",
            "optimizer_state_dict",
            "val_acc",
            "val_loss",
            "config",
            "quantization_method",
        ]
        assert content["epoch"] == epoch == result.epoch
        assert (content["val_acc"], content["val_loss"]) == (result.val_acc, result.val_loss)
        assert content["quantization_method"] == "my_method"
        assert set(content["optimizer_state_dict"]) == {"state", "param_groups"}
        assert experiment_from_mapping(content["config"], "test") == settings
        assert set(content["model_state_dict"]) == set(build_network(settings).state_dict())


def test_the_shape_of_the_data_is_filled_in_where_the_experiment_does_not_say() -> None:
    model = experiment().model
    assert (model.in_channels, model.num_classes, model.input_size) == (1, 4, (6, 6))
    model = experiment(in_channels=3, num_classes=9, input_size=[5, 7]).model
    assert (model.in_channels, model.num_classes, model.input_size) == (3, 9, (5, 7))


def test_weights_and_clipping_values_decay_and_nothing_else_does(tmp_path: Path) -> None:
    settings = experiment(method={"weight_quantization": "lsq"}, training={"weight_decay": 0.25, "epochs": 1})
    (result,) = trained(settings, tmp_path / "out")
    groups = torch.load(result.checkpoint, weights_only=True)["optimizer_state_dict"]["param_groups"]
    names = [name for name, _ in build_network(settings).named_parameters()]
    decayed = {name for name in names if name.endswith(".alpha") or ("bn" not in name and ".1." not in name
               and name.endswith("weight"))}  # fmt: skip
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]
    assert [len(group["params"]) for group in groups] == [len(decayed), len(names) - len(decayed)]
    assert {"fc.weight", "layer1.0.conv1.alpha"} < decayed


def test_the_learning_rate_falls_along_a_cosine_to_zero(tmp_path: Path) -> None:
    results = trained(experiment(training={"epochs": 4, "learning_rate": 8e-3}), tmp_path / "out")
    contents = [torch.load(result.checkpoint, weights_only=True) for result in results]
    rates = [[group["lr"] for group in content["optimizer_state_dict"]["param_groups"]] for content in contents]
    for epoch, (decayed, kept) in enumerate(rates, start=1):
        assert decayed == kept == pytest.approx(4e-3 * (1 + math.cos(math.pi * epoch / 4)), abs=1e-12)


def test_a_last_batch_of_a_single_sample_is_left_out(tmp_path: Path) -> None:
    one_more = Split(dataset="q", name="train", inputs=TRAIN.inputs[:33], labels=TRAIN.labels[:33])
    (result,) = trained(experiment(training={"epochs": 1}), tmp_path / "out", data=one_more)
    counts = [int(t) for name, t in state_of(result).items() if name.endswith("num_batches_tracked")]
    assert set(counts) == {2 * 2}  # two batches at two configurations each


def test_batches_of_one_sample_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as error:
        trained(experiment(training={"batch_size": 1}), tmp_path / "out")
    assert str(error.value) == "training.batch_size: 1; batch norm needs at least 2 samples to normalize"


# --- the demo's promise ---------------------------------------------------------------------------------------------


def test_the_demo_is_worth_looking_at(demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = read_checkpoint(demo_checkpoint)
    settings = EvaluationSettings(
        sampler="uniform",
        num_configs=3,
        seed=0,
        bitwidths=None,
        batch_size=256,
        device=CPU,
        engine="auto",
    )
    split = load_split(checkpoint.experiment.data, "validation")
    evaluation = prepare(checkpoint, split, settings)
    (table,) = evaluate(evaluation, evaluation.plan.chunks(set()))
    accuracy = {row["bitwidths"][0]: row["accuracy"] for row in table.to_pylist()}
    with capsys.disabled():
        print(f"\nthe demo's accuracy at uniform bits: {accuracy}")
    assert accuracy[8] >= 0.95
    assert accuracy[2] <= accuracy[8] - 0.03


def test_the_demo_learns(demo_training: tuple[list[EpochResult], list[str]]) -> None:
    results, _ = demo_training
    assert [result.epoch for result in results] == list(range(15))
    assert results[-1].train_loss < 0.2 * results[0].train_loss
    assert results[-1].val_acc > 0.9
