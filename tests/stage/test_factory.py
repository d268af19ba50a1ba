"""Anyone's model: a factory in a file that the user names, weights wherever they stand, rows as of a plain loop."""

import copy
import doctest
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from stage_references import Outcome, qbw_eval
from torch import Tensor, nn
from user_networks import plain_loop, randomized, their_module, write_package

from qbw_eval.checkpoints import foreign
from qbw_eval.checkpoints.foreign import wrapping
from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.commands import inspect
from qbw_eval.data.split import Split
from qbw_eval.engine import choose
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.passes import PLAIN
from qbw_eval.evaluate import EvaluationSettings, evaluate, prepare
from qbw_eval.experiment import Experiment, load_evaluation_file
from qbw_eval.networks.build import build_network, load_network
from qbw_eval.networks.facts import network_facts
from qbw_eval.quantization import protocol
from qbw_eval.quantization.bitwidths import get_bitwidths, quantized_layers, restored, set_bitwidths
from qbw_eval.settings.model import FactoryModel

YAML = """\
experiment: theirs
model:
  factory: theirs.nets:make
  arguments: {width: 3}
data: {source: tensors, validation: validation.npz}
random_bitwidths: {num_bitwidths: 7, seed: 3}
"""
INPUTS = np.random.default_rng(0).standard_normal((11, 1, 8, 8), dtype=np.float32)
LABELS = np.array([4, 3, 4, 3, 4, 6, 3, 3, 4, 7, 9])  # what some of the networks say of some of the inputs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with their package, data, a file that names both and a checkpoint; we are in it."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    write_package(tmp_path)
    np.savez(tmp_path / "validation.npz", inputs=INPUTS, labels=LABELS)
    (tmp_path / "mine.yaml").write_text(YAML)
    save(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("theirs", "apart"):
            del sys.modules[name]


def theirs(place: Path, function: str = "make", **arguments: Any) -> nn.Module:
    """Return their network with weights, made without us."""
    arguments = {"width": 3} if function == "make" and not arguments else arguments
    return randomized(getattr(their_module(place), function)(**arguments))


def save(place: Path, content: object = None, name: str = "epoch_12.pth") -> Path:
    if content is None:
        content = {"state_dict": theirs(place).state_dict()}
    torch.save(content, place / name)
    return place / name


def config(place: Path, **model: object) -> Path:
    """Write the file with other settings of the model, and return it."""
    lines = {"factory": "theirs.nets:make", "arguments": {"width": 3}, **model}
    section = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in lines.items() if value is not None)
    before, _, after = YAML.partition("model:\n")
    (place / "mine.yaml").write_text(before + "model:\n" + section + after[after.index("data:") :])
    return place / "mine.yaml"


def run(*words: object, checkpoint: str = "epoch_12.pth") -> Outcome:
    return qbw_eval("run", checkpoint, "--config", "mine.yaml", "--records", "records", *words)


def rows(place: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pd.read_parquet(place / "records").sort_values("config_index").to_dict("records")
    return found


def masks(predicted: list[Tensor]) -> list[bytes]:
    return [np.packbits(classes.numpy() == LABELS, bitorder="little").tobytes() for classes in predicted]


def experiment_in(path: Path) -> Experiment:
    found = load_evaluation_file(path)
    assert isinstance(found, Experiment)
    return found


def loaded(place: Path, path: str = "epoch_12.pth", config: str = "mine.yaml") -> nn.Module:
    checkpoint = read_checkpoint(place / path, experiment_in(place / config))
    return load_network(checkpoint.experiment, checkpoint.state, path)


# --- rows are those of a plain loop over their own network ------------------------------------------------------------


KINDS: dict[str, tuple[dict[str, object], dict[str, object], tuple[str, ...]]] = {
    # what it is made with, what the file says of bits, the attributes that a plain loop sets
    "curr_bitwidth": ({}, {}, ("curr_bitwidth",)),
    "wbit and abit": (
        {"kind": "TwoBits"},
        {"bitwidth_attribute": ["wbit", "abit"], "bitwidth_options": [2, 4, 8]},
        ("wbit", "abit"),
    ),
    "a setter": ({"kind": "Prepared"}, {"set_bitwidth": "theirs.nets:prepare"}, ("curr_bitwidth", "prepared")),
    "a quantizer of their own": ({"kind": "Powers"}, {"bitwidth_options": [1, 2]}, ("curr_bitwidth",)),
    "looks at values": ({"net": "Looks"}, {}, ("curr_bitwidth",)),
}


@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("name", KINDS)
def test_rows_are_those_of_a_plain_loop(name: str, engine: str, place: Path) -> None:
    arguments, settings, attributes = KINDS[name]
    config(place, arguments={"width": 3, **arguments}, **settings)
    network = theirs(place, width=3, **arguments)
    save(place, {"state_dict": network.state_dict()})
    outcome = run("--engine", engine)
    assert outcome.code == 0, outcome.stderr
    found = rows(place)
    assert len(found) == 7 if name != "a quantizer of their own" else len(found) == 4  # of two layers at two widths
    expected = plain_loop(
        network,
        torch.from_numpy(INPUTS),
        [dict(zip(("first", "second"), r["bitwidths"], strict=True)) for r in found],
        attributes,
    )
    assert [row["correct_mask"] for row in found] == masks(expected)
    assert len(set(masks(expected))) > 1
    assert {(row["experiment"], row["epoch"], row["dataset"]) for row in found} == {("theirs", 12, "validation")}
    traced = engine == "auto" and name != "looks at values"
    assert {row["engine"] for row in found} == {"incremental" if traced else "reference"}
    assert ("engine: reference (its forward pass cannot be traced" in outcome.stderr) == (
        engine == "auto" and name == "looks at values"
    )
    assert "Nothing to do: all" in run("--engine", engine).stdout
    assert qbw_eval("verify", "records").code == 0


def test_networks_that_take_dicts_are_evaluated_too(place: Path) -> None:
    network = theirs(place, "sides")
    config(place, factory="theirs.nets:sides", arguments=None)
    path = save(place, {"net": network.state_dict()})
    inputs = {side: {"image": torch.from_numpy(INPUTS)} for side in ("right", "left")}
    split = Split(dataset="both", name="validation", inputs=inputs, labels=torch.from_numpy(LABELS % 4))
    checkpoint = read_checkpoint(path, experiment_in(place / "mine.yaml"))
    evaluation = prepare(checkpoint, split, settings())
    assert evaluation.plan.options == (2, 4, 8)
    (table,) = evaluate(evaluation, [evaluation.plan.configurations])
    names = evaluation.plan.table.names
    assert names == ("left.first", "left.second", "right.first", "right.second")
    expected = plain_loop(
        network,
        inputs,
        [dict(zip(names, bits, strict=True)) for bits in table["bitwidths"].to_pylist()],
        ("curr_bitwidth",),
    )
    correct = [int((classes == split.labels).sum()) for classes in expected]
    assert table["correct"].to_pylist() == correct
    assert len(set(correct)) > 1


def test_model_and_data_of_their_own_in_one_file(place: Path) -> None:
    network = theirs(place, "sides")
    config(place, factory="theirs.nets:sides", arguments=None)
    text = (
        (place / "mine.yaml")
        .read_text()
        .replace(
            "{source: tensors, validation: validation.npz}",
            "{source: factory, factory: 'theirs.nets:pairs', arguments: {path: validation.npz}}",
        )
    )
    (place / "mine.yaml").write_text(text)
    save(place, network.state_dict())
    outcome = run("--batch-size", "3")
    assert outcome.code == 0, outcome.stderr
    images = torch.from_numpy(INPUTS)
    inputs = {"left": {"image": images.flip(3)}, "right": {"image": images}}
    names = ("left.first", "left.second", "right.first", "right.second")
    found = rows(place)
    configurations = [dict(zip(names, row["bitwidths"], strict=True)) for row in found]
    predicted = plain_loop(network, inputs, configurations, ("curr_bitwidth",))
    assert [row["correct"] for row in found] == [int((p.numpy() == LABELS % 4).sum()) for p in predicted]
    assert {row["dataset"] for row in found} == {"theirs.nets:pairs"}
    assert qbw_eval("inspect", "epoch_12.pth", "--config", "mine.yaml").code == 0


def settings(**changes: Any) -> EvaluationSettings:
    given = {"sampler": "iid", "num_configs": 9, "seed": 0, "bitwidths": None, "batch_size": 4, "engine": "auto"}
    return EvaluationSettings(**{**given, "device": torch.device("cpu"), **changes})


# --- where options come from ------------------------------------------------------------------------------------------


def test_options_are_those_of_the_file_or_else_those_that_all_layers_offer(place: Path) -> None:
    assert run("--sampler", "uniform").code == 0
    assert [set(row["bitwidths"]) for row in rows(place)] == [{2}, {4}, {8}]
    config(place, bitwidth_options=[6, 3])
    assert experiment_in(place / "mine.yaml").layer_options == (3, 6)
    assert run("--sampler", "uniform").code == 0
    assert {min(row["bitwidths"]) for row in rows(place)} == {2, 4, 8, 3, 6}
    text = (place / "mine.yaml").read_text().replace("  bitwidth_options: [6, 3]\n", "")
    (place / "mine.yaml").write_text(text + "quantization: {any: {bitwidth_options: [5, 7]}}\n")
    assert experiment_in(place / "mine.yaml").layer_options == (5, 7)
    assert run("--sampler", "uniform").code == 0
    assert {min(row["bitwidths"]) for row in rows(place)} == {2, 4, 8, 3, 6, 5, 7}


def test_where_nobody_says_which_bitwidths_one_sentence_does(place: Path) -> None:
    config(place, arguments={"width": 3, "kind": "Powers"})
    outcome = run()
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr == (
        "qbw-eval: error: model.bitwidth_options: this key is missing: the network's quantized layers share no "
        "bitwidth_options of their own; name the bitwidths to draw from, for instance [2, 4, 8]\n"
    )


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model", "net", None])
def test_weights_are_found_under_the_usual_keys_and_without_what_wrappers_add(
    key: str | None, prefix: str, place: Path
) -> None:
    state = theirs(place).state_dict()
    named = {prefix + name: tensor for name, tensor in state.items()}
    save(place, named if key is None else {"epoch": 4, key: named, "optimizer": {"state": {}}}, "any.pt")
    checkpoint = read_checkpoint(place / "any.pt", experiment_in(place / "mine.yaml"))
    assert checkpoint.state.keys() == state.keys()
    assert checkpoint.epoch == (0 if key is None else 4)
    found = loaded(place, "any.pt").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    # and where the factory wraps it too
    config(place, factory="theirs.nets:wrapped")
    found = loaded(place, "any.pt").state_dict()
    assert all(torch.equal(found[f"module.{name}"], tensor) for name, tensor in state.items())


def test_a_name_without_the_wrapper_keeps_it_on_the_others() -> None:
    assert wrapping(["module.a", "module.b"]) == "module."
    assert wrapping(["module.a", "b"]) == wrapping([]) == wrapping(["modules.a"]) == ""
    assert wrapping(["module.module."]) == "module.module."


def test_weights_in_half_precision_become_the_networks_own_type(place: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in theirs(place).state_dict().items()}
        save(place, state)
        found = loaded(place).state_dict()
        assert found["fc.weight"].dtype == torch.float32
        assert torch.equal(found["fc.weight"], state["fc.weight"].float())


def test_safetensors_files_hold_weights_too(place: Path) -> None:
    state = theirs(place).state_dict()
    names, offset, header, body = [*state], 0, {}, b""
    for name in names:
        data = state[name].contiguous().numpy().tobytes()
        dtype = "I64" if state[name].dtype == torch.int64 else "F32"
        header[name] = {"dtype": dtype, "shape": [*state[name].shape], "data_offsets": [offset, offset + len(data)]}
        offset, body = offset + len(data), body + data
    text = json.dumps(header).encode()
    (place / "ep7.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    outcome = run(checkpoint="ep7.safetensors")
    assert outcome.code == 0, outcome.stderr
    assert run().code == 0
    of_both = {row["checkpoint"]: [] for row in rows(place)}  # type: ignore[var-annotated]
    for row in rows(place):
        of_both[row["checkpoint"]].append((row["correct_mask"], row["loss"]))
    assert of_both["ep7.safetensors"] == of_both["epoch_12.pth"]
    assert {row["epoch"] for row in rows(place)} == {7, 12}


@pytest.mark.parametrize(
    ("name", "content", "epoch"),
    [
        ("any.pt", {"epoch": 3}, 3),
        ("epoch_9.pt", {"epoch": 3}, 3),
        ("epoch_9.pt", {}, 9),
        ("epoch_9.pt", {"epoch": "3"}, 9),
        ("epoch_9.pt", {"epoch": -3}, 9),
        ("epoch_9.pt", {"epoch": True}, 9),
        ("checkpoint-0012.pth.tar", {}, 12),
        ("net_ep12_acc93.pth", {}, 12),
        ("Epoch=7-step=400.ckpt", {}, 7),
        ("ckpt5.pt", {}, 5),
        ("step12.pt", {}, None),
        ("epoch_12345678901234.pt", {}, None),
    ],
)
def test_the_epoch_is_what_the_file_says_or_else_its_name(
    name: str, content: dict[str, object], epoch: int | None, place: Path
) -> None:
    path = save(place, {**content, "model": theirs(place).state_dict()}, name)
    checkpoint = read_checkpoint(path, experiment_in(place / "mine.yaml"))
    assert checkpoint.epoch == (epoch or 0)
    assert checkpoint.remarks == (
        ()
        if epoch is not None
        else (
            f"{path}: neither its content nor its name says which epoch it is of; its rows say 0 (a whole number under "
            "'epoch', or a name such as epoch_12.pt, would tell)",
        )
    )


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, 0.5), (1, 1.0), (True, None), ("0.5", None), (None, None), (math.nan, None)]
)
def test_val_acc_is_kept_if_it_is_a_number(value: object, expected: float | None, place: Path) -> None:
    content = {"val_acc": value, "best_acc": 0.9, "net": theirs(place).state_dict()}
    assert read_checkpoint(save(place, content), experiment_in(place / "mine.yaml")).val_acc == expected


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "a list"),
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, "the keys ['epoch', 'weights']"),
        ({"model": "resnet", "net": {}}, "the keys ['model', 'net']"),
        ({}, "the keys []"),
        ({"a": torch.zeros(1), "b": 1}, "the keys ['a', 'b']"),
    ],
)
def test_a_file_without_weights_is_refused(content: object, found: str, place: Path) -> None:
    save(place, content)
    outcome = run()
    assert outcome.code == 1
    assert outcome.stderr == (
        "qbw-eval: error: epoch_12.pth: expected a state dict (tensors by name) under 'model_state_dict', "
        f"'state_dict', 'model' or 'net', or nothing else in the file; found {found}; save it with "
        "torch.save({'state_dict': network.state_dict()}, path)\n"
    )


def test_counters_of_batch_norms_may_be_missing(place: Path) -> None:
    state = theirs(place).state_dict()
    del state["bn.num_batches_tracked"]
    save(place, state)
    assert run().code == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda state: {n: t for n, t in state.items() if n != "fc.bias"},
            "fc.bias: missing from the checkpoint; was it saved from another network, or another version of its code?",
        ),
        (
            lambda state: {**state, "fc.weight": torch.zeros(7, 8), "fc.bias": torch.zeros(7)},
            "fc.weight: is (7, 8) in the checkpoint, (10, 8) in the network; fc.bias: is (7,) in the checkpoint, "
            "(10,) in the network; was it saved from another number of classes?",
        ),
        (
            lambda state: {**state, "stem.weight": torch.zeros(5, 1, 3, 3), "bn.weight": torch.zeros(5)},
            "stem.weight: is (5, 1, 3, 3) in the checkpoint, (3, 1, 3, 3) in the network; bn.weight: is (5,) in the "
            "checkpoint, (3,) in the network; was it saved from another width, number of classes or clipping?",
        ),
        (
            lambda state: {**state, "first.alpha": torch.zeros(3, 1, 1, 1)},
            "first.alpha: not in the network; was it saved with other quantizers?",
        ),
        (
            lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()},
            "stem.weight: missing from the checkpoint; bn.weight: missing from the checkpoint; bn.bias: missing from "
            "the checkpoint; bn.running_mean: missing from the checkpoint; bn.running_var: missing from the "
            "checkpoint; and 18 more; names in the checkpoint begin with 'backbone.', which those in the network "
            "lack; build the whole network, or save the state dict of that part",
        ),
        (
            lambda state: {**state, "bn.bias": torch.zeros(3, dtype=torch.int64)},
            "bn.bias: is torch.int64 in the checkpoint, torch.float32 in the network; weights are floating-point "
            "numbers here; was it saved from a network converted to whole numbers?",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed_with_the_likely_cause(change: Any, sentence: str, place: Path) -> None:
    save(place, {"state_dict": change(theirs(place).state_dict())})
    outcome = run()
    assert outcome.code == 1
    assert outcome.stderr == (
        "qbw-eval: error: epoch_12.pth: its weights do not fit the network that theirs.nets:make returns: "
        + sentence
        + "\n"
    )


# --- only what the user names is ever run -----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--config", "data.yaml")])
@pytest.mark.parametrize("command", ["run", "inspect"])
def test_a_checkpoint_can_never_name_a_factory(command: str, more: tuple[str, ...], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    write_package(tmp_path, canary)
    named = {"model": {"factory": "theirs.nets:make"}, "data": {"source": "digits"}, "quantization": {"enable": False}}
    torch.save({"epoch": 1, "model_state_dict": {"a": torch.zeros(1)}, "config": named}, tmp_path / "a.pt")
    (tmp_path / "data.yaml").write_text("data: {source: digits}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(str(tmp_path))
        outcome = qbw_eval(command, "a.pt", *more)
    assert outcome.code == 2
    assert outcome.stderr == (
        "qbw-eval: error: a.pt: config: model.factory: names code to run, which QBW runs only where you name it "
        "yourself; if you trust it, copy the model section into a file and give that with --config\n"
    )
    assert not canary.exists()
    assert "theirs" not in sys.modules


def test_the_canary_sings_where_the_user_names_the_factory(tmp_path: Path, place: Path) -> None:
    """The control: the package above does leave its mark."""
    (place / "theirs" / "rounding.py").write_text(
        f"open({str(tmp_path / 'canary')!r}, 'w').close()\ndef levels(bits):\n    return 2**bits - 1\n"
    )
    assert run().code == 0
    assert (tmp_path / "canary").exists()


def test_a_factory_in_a_checkpoint_changes_nothing_of_what_the_user_names(place: Path) -> None:
    named = {"model": {"factory": "theirs.nets:broken"}, "data": {"source": "digits"}}
    save(place, {"model_state_dict": theirs(place).state_dict(), "config": named})
    assert run().code == 0


# --- what goes wrong in the user's code -------------------------------------------------------------------------------


def line_of(place: Path, text: str) -> int:
    lines = (place / "theirs" / "nets.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


def refused(place: Path, *words: object, code: int = 2, **model: object) -> str:
    config(place, **model)
    outcome = run(*words)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert outcome.stderr.startswith("qbw-eval: error: ")
    assert outcome.stderr.count("\n") == 1
    return outcome.stderr.removeprefix("qbw-eval: error: ").removesuffix("\n")


def test_a_factory_that_fails_is_told_with_the_place_in_the_users_file(place: Path) -> None:
    line = line_of(place, 'raise KeyError("width")')
    assert refused(place, factory="theirs.nets:broken") == (
        f"model.factory: theirs.nets:broken: KeyError: 'width' ({place}/theirs/nets.py:{line})"
    )


def test_arguments_that_the_factory_does_not_take(place: Path) -> None:
    sentence = refused(place, arguments={"widht": 3})
    assert sentence == "model.factory: theirs.nets:make: TypeError: make() got an unexpected keyword argument 'widht'"


def test_a_factory_that_returns_no_network(place: Path) -> None:
    assert refused(place, factory="theirs.nets:nothing", arguments=None) == (
        "model.factory: theirs.nets:nothing: returned an object of type dict; expected the network, a torch.nn.Module"
    )


def test_a_network_without_quantized_layers(place: Path) -> None:
    assert refused(place, factory="theirs.nets:plain", arguments=None) == (
        "model.factory: theirs.nets:plain: none of the 1 modules of its network has curr_bitwidth as a whole number; "
        "name what holds a layer's bits with model.bitwidth_attribute"
    )
    assert refused(place, arguments={"net": "Mixed"}, bitwidth_attribute=["wbit", "abit"]) == (
        "model.bitwidth_attribute: theirs.nets:make: module 'second' has curr_bitwidth, by which quantized layers are "
        "known, but not wbit and abit; name curr_bitwidth too, or call it something else there"
    )
    assert refused(place, bitwidth_attribute=["wbit", "curr_bitwidth"]) == (
        "model.factory: theirs.nets:make: none of the 6 modules of its network has wbit and curr_bitwidth as a whole "
        "number; name what holds a layer's bits with model.bitwidth_attribute"
    )


def test_a_setter_that_does_not_set_or_refuses(place: Path) -> None:
    assert refused(place, set_bitwidth="theirs.nets:forget") == (
        "layer 'first' stays at 8 bits where theirs.nets:forget sets it to 2; curr_bitwidth must say what a layer "
        "runs at"
    )
    line = line_of(place, "raise ValueError(f")
    assert refused(place, set_bitwidth="theirs.nets:refuse") == (
        "layer 'first' cannot be set to 4 bits: theirs.nets:refuse: ValueError: 4 bits are "
        f"({place}/theirs/nets.py:{line})"
    )


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("tuple", "a tuple for one sample; {}; let the factory return a module whose forward picks the logits out"),
        ("dict", "a dict for one sample; {}; let the factory return a module whose forward picks the logits out"),
        ("squeezed", "float32 of shape (10,) for one sample; {}; the first dimension stays also where it is 1"),
        ("classes", "int64 of shape (1,) for one sample; {}; the first dimension stays also where it is 1"),
    ],
)
def test_a_network_that_returns_no_logits(how: str, found: str, place: Path) -> None:
    save(place, theirs(place, "returns", how=how).state_dict())
    expected = found.format("expected logits as one tensor of floats (samples, classes)")
    assert refused(place, factory="theirs.nets:returns", arguments={"how": how}) == (
        f"model.factory: theirs.nets:returns: its network returns {expected}"
    )


def test_a_forward_that_fails_is_told_with_the_shapes_of_its_input(place: Path) -> None:
    np.savez(place / "validation.npz", inputs=np.zeros((4, 3, 8, 8), np.float32), labels=np.zeros(4, np.int64))
    line = line_of(place, "x = torch.relu(self.bn(self.stem(x)))")
    assert refused(place) == (
        "the network fails on a sample of validation, one tensor (1, 3, 8, 8): theirs.nets:make: RuntimeError: Given "
        "groups=1, weight of size [3, 1, 3, 3], expected input[1, 3, 8, 8] to have 1 channels, but got 3 channels "
        f"instead ({place}/theirs/nets.py:{line})"
    )


def test_a_forward_that_fails_in_a_later_batch_is_one_sentence_too(place: Path) -> None:
    save(place, theirs(place, "returns", how="fails later").state_dict())
    config(place, factory="theirs.nets:returns", arguments={"how": "fails later"})
    outcome = run("--engine", "reference", "--quiet")
    line = line_of(place, 'raise RuntimeError("not so many")')
    assert outcome.code == 2
    assert outcome.stderr == (
        "qbw-eval: error: epoch_12.pth: its network fails: theirs.nets:returns: RuntimeError: not so many "
        f"({place}/theirs/nets.py:{line})\n"
    )


def test_too_few_classes(place: Path) -> None:
    save(place, theirs(place, width=3, classes=9).state_dict())
    assert LABELS.max() == 9
    assert refused(place, arguments={"width": 3, "classes": 9}, code=1) == (
        "validation: the largest label is 9, the network of epoch_12.pth has 9 classes, counted from 0"
    )


def test_what_the_users_code_prints_is_no_result(place: Path) -> None:
    config(place, factory="theirs.nets:prints", arguments={"width": 3, "classes": 10})
    for words in (("run", "epoch_12.pth", "--records", "records"), ("inspect", "epoch_12.pth")):
        outcome = qbw_eval(*words, "--config", "mine.yaml", "--json")
        assert outcome.code == 0
        assert json.loads(outcome.stdout)
        assert "hello from the factory\n" in outcome.stderr
        assert "hello from the forward\n" in outcome.stderr


def test_of_several_checkpoints_one_that_does_not_fit_stops_no_other(place: Path) -> None:
    save(place, {"net": {"a": torch.zeros(1)}}, "epoch_13.pth")
    outcome = qbw_eval("run", ".", "--config", "mine.yaml", "--records", "records")
    assert outcome.code == 1
    assert {row["checkpoint"] for row in rows(place)} == {"epoch_12.pth"}


@pytest.mark.usefixtures("place")
def test_qbw_does_not_train_it() -> None:
    outcome = qbw_eval("train", "mine.yaml")
    assert outcome.code == 2
    assert outcome.stderr == (
        "qbw-eval: error: mine.yaml: model.factory: QBW trains networks of its own only; train yours in a loop of your "
        "own (validate_random_bitwidths fits in there) and evaluate its checkpoints with qbw-eval run\n"
    )


# --- layers under other names -----------------------------------------------------------------------------------------


def test_layers_under_other_names_can_be_copied_restored_and_told_apart(place: Path) -> None:
    config(place, arguments={"width": 3, "kind": "TwoBits"}, bitwidth_attribute=["wbit", "abit"])
    network = build_network(experiment_in(place / "mine.yaml"))
    assert get_bitwidths(network) == {"first": 8, "second": 8}
    assert [type(layer).__name__ for layer in quantized_layers(network).values()] == ["TwoBits"] * 2
    other = copy.deepcopy(network)
    with restored(network):
        set_bitwidths(network, {"first": 2, "second": 4})
        assert (network.first.wbit, network.first.abit, network.second.abit) == (2, 2, 4)  # type: ignore[union-attr]
        assert get_bitwidths(other) == {"first": 8, "second": 8}
    assert (network.first.wbit, network.first.abit) == (8, 8)  # type: ignore[union-attr]
    set_bitwidths(other, {"first": 4, "second": 2})
    assert (get_bitwidths(network), get_bitwidths(other)) == ({"first": 8, "second": 8}, {"first": 4, "second": 2})
    assert network.state_dict().keys() == theirs(place).state_dict().keys()


def test_what_a_factory_draws_is_drawn_the_same_every_time_and_from_nobody_elses_generator(place: Path) -> None:
    experiment = experiment_in(place / "mine.yaml")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = build_network(experiment), build_network(experiment)
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


# --- what a row's identity knows --------------------------------------------------------------------------------------


def facts(place: Path) -> dict[str, object]:
    experiment = experiment_in(place / "mine.yaml")
    found = network_facts(experiment, build_network(experiment))
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]  # as in another process
    return found


def test_the_networks_identity_has_the_factory_its_arguments_and_the_source_of_its_layers(place: Path) -> None:
    before = facts(place)
    assert (before["factory"], before["arguments"]) == ("theirs.nets:make", {"width": 3})
    assert (before["bitwidth_attribute"], before["set_bitwidth"]) == (["curr_bitwidth"], None)
    assert len(before["sources"]) == 1  # type: ignore[arg-type]  # one file has factory and layers
    assert facts(place) == before
    config(place, arguments={"width": 4})
    assert facts(place) != before
    config(place)
    nets = place / "theirs" / "nets.py"
    nets.write_text(nets.read_text().replace("x[:, :, 1, 1]", "x[:, :, 1, 2]"))
    changed = facts(place)
    assert {key for key in changed if changed[key] != before[key]} == {"sources"}


# --- the documentation ------------------------------------------------------------------------------------------------


REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture
def documented(place: Path) -> Iterator[Path]:
    """The README's example, its network the one of docs/protocol.md."""
    (yaml,) = re.findall(r"```yml\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/protocol.md").read_text(), flags=re.DOTALL)
    (place / "nets.py").write_text(code)
    (place / "mine.yaml").write_text(yaml)
    namespace: dict[str, Any] = {"__name__": "documented"}
    exec(code, namespace)
    save(place, randomized(namespace["make"](16, 10)).state_dict())
    yield place
    sys.modules.pop("nets", None)


def test_the_documented_network_is_evaluated_and_its_layers_get_the_fast_engines(documented: Path) -> None:
    for command in re.findall(r"qbw-eval (\w+ epoch_12[^#]*?) +#", (REPOSITORY / "README.md").read_text()):
        words = command.split()
        outcome = qbw_eval(*words, *(("--records", "records") if words[0] == "run" else ()))
        assert outcome.code == 0, outcome.stderr
    assert "2 layers run as ours, having given the same bits)" in outcome.stderr
    assert {row["engine"] for row in rows(documented)} == {"incremental"}
    incremental = rows(documented)
    outcome = run("--engine", "reference", "--no-resume")
    reference = [row for row in rows(documented) if row["engine"] == "reference"]
    assert [row["correct_mask"] for row in reference] == [row["correct_mask"] for row in incremental]
    assert [row["loss"] for row in reference] == [row["loss"] for row in incremental]
    told = json.loads(qbw_eval("inspect", "epoch_12.pth", "--config", "mine.yaml", "--json").stdout)
    assert {layer["quantizer"] for layer in told["layers"]} == {"dorefa/pact, 3 clipping values"}


def test_the_documented_settings_are_valid_ones(place: Path) -> None:
    text = (REPOSITORY / "docs/checkpoints.md").read_text()
    (yaml,) = re.findall(r"```yaml\n(# mine.yaml.*?)```", text, flags=re.DOTALL)
    (place / "mine.yaml").write_text(yaml)
    found = experiment_in(place / "mine.yaml")
    assert found.layer_options == (2, 4, 8)
    assert isinstance(found.model, FactoryModel)
    assert (found.model.bitwidth_attribute, found.model.set_bitwidth) == (("wbit", "abit"), "nets:set_bits")


@pytest.mark.skipif(why_not_here() is not None, reason="int8 convolutions are not exact here")
def test_the_documented_network_runs_in_integers(documented: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "fastest_passes", lambda: PLAIN)  # compiling takes a second
    outcome = run("--engine", "integer")
    assert "engine: integer (exact convolutions of integers" in outcome.stderr
    assert {row["engine"] for row in rows(documented)} == {"integer"}
    strayed = {row["config_index"]: row["correct"] for row in rows(documented)}
    assert run("--engine", "reference", "--records", "others").code == 0
    others = pd.read_parquet(documented / "others").set_index("config_index")["correct"]
    assert all(abs(others[index] - correct) <= 1 for index, correct in strayed.items())


# --- inspect ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("place")
def test_inspect_shows_somebodys_layers_too() -> None:
    outcome = qbw_eval("inspect", "epoch_12.pth", "--config", "mine.yaml")
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in outcome.stdout.splitlines()]
    assert lines[:2] == [
        "epoch_12.pth: experiment theirs, epoch 13, theirs.nets:make",
        "Quantized layers in forward order; MACs for one sample:",
    ]
    assert lines[2] == "layer shape weights MACs options quantizer"
    assert lines[4:6] == [
        "first 3x3x3x3 81 5,184 2,4,8 custom (Conv)",
        "second 8x3x3x3 216 1,944 2,4,8 custom (Conv)",
    ]
    assert lines[7] == "all of them 297 7,128"
    assert max(map(len, outcome.stdout.splitlines())) <= 100
    told = json.loads(qbw_eval("inspect", "epoch_12.pth", "--config", "mine.yaml", "--json").stdout)
    assert (told["model"], told["bitwidth_options"]) == ("theirs.nets:make", [2, 4, 8])
    assert told["layers"][0] == {
        "layer_name": "first",
        "kind": "conv2d",
        "weights": 81,
        "macs": 5184,
        "in_channels": 3,
        "out_channels": 3,
        "kernel": "3x3",
        "stride": "1x1",
        "shape": [3, 3, 3, 3],
        "options": [2, 4, 8],
        "quantizer": "custom (Conv)",
    }


def test_long_names_are_told_in_groups_and_whole_as_json(place: Path) -> None:
    network = theirs(place, "deep")
    config(place, factory="theirs.nets:deep", arguments=None)
    save(place, network.state_dict())
    lines = qbw_eval("inspect", "epoch_12.pth", "--config", "mine.yaml").stdout.splitlines()
    assert lines[1] == "Quantized layers of a_long_name_of_a_part in forward order; MACs for one sample:"
    assert [line.split("  ")[0] or line.split()[0] for line in lines[4:24]] == [
        *("left.blocks", *map(str, range(9)), "right.blocks", *map(str, range(9)))
    ]
    told = json.loads(qbw_eval("inspect", "epoch_12.pth", "--config", "mine.yaml", "--json").stdout)
    assert [layer["layer_name"] for layer in told["layers"]] == [
        f"a_long_name_of_a_part.{way}.blocks.{number}" for way in ("left", "right") for number in range(9)
    ]


def test_the_examples_in_docstrings_run() -> None:
    for module in (inspect, foreign, protocol):
        results = doctest.testmod(module)
        assert (results.failed, results.attempted > 0) == (0, True)


def test_inspect_takes_a_sample_of_the_split_that_there_is(place: Path) -> None:
    text = (place / "mine.yaml").read_text()
    (place / "mine.yaml").write_text(text.replace("validation: ", "train: "))
    assert qbw_eval("inspect", "epoch_12.pth", "--config", "mine.yaml").code == 0
