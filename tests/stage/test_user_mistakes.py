"""Mistakes that users make: each gives one whole, tested sentence and the right exit code, and changes no record."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stage_references import CHECKPOINT_ID, PLAN_ID, contents, one_thread, qbw_eval, rows_of

from qbw_eval.store import RecordStore

YAML = """\
experiment: mine
model: {name: resnet8, width: 4, in_channels: 1, num_classes: 10}
data: {source: digits}
training: {epochs: 1, batch_size: 500}
quantization:
  first: {bitwidth_options: [2, 4, 8], activation_quantization: pact}
"""


WAY_ROUND = ", or name it with --trust-pickle too, which lets whoever wrote it do on this machine all that you can"
IMAGE_FOLDER = {"source": "image_folder", "size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}


class Runs:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch canary",)


class Workplace:
    """A folder with a good checkpoint (`good.pt`), to make mistakes in; relative paths are from there."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self._content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        self.good = checkpoint.read_bytes()
        self.write("good.pt", self.good)

    def inside(self, name: str, levels: int) -> str:
        """Write a file in folders and return the folder that many levels above it."""
        return str(Path(self.write(name, "mine")).parents[levels - 1])

    def write(self, name: str, data: str | bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return name

    def checkpoint(self, without: str | None = None, **changes: object) -> str:
        """Write the good checkpoint with some of its keys replaced or one left out."""
        return self.save({key: value for key, value in {**self._content, **changes}.items() if key != without})

    def save(self, content: object) -> str:
        torch.save(content, self.folder / "bad.pt")
        return "bad.pt"

    def weights(self, **changes: torch.Tensor | None) -> str:
        """Write the good checkpoint with some weights replaced (`__` for a dot), added, or left out where None."""
        state = dict(self._content["model_state_dict"])
        for name, tensor in changes.items():
            key = name.replace("__", ".")
            if tensor is None:
                del state[key]
            else:
                state[key] = tensor
        return self.checkpoint(model_state_dict=state)

    def config(self, **sections: Mapping[str, object]) -> str:
        """Write the good checkpoint with keys of its configuration's sections replaced."""
        config = copy.deepcopy(self._content["config"])
        for section, keys in sections.items():
            config[section].update(keys)
        return self.checkpoint(config=config)

    def data(self, inputs: np.ndarray, labels: np.ndarray) -> str:
        """Write a data file, and the good checkpoint with a configuration that names it."""
        np.savez(self.folder / "data.npz", inputs=inputs, labels=labels)
        return self.config(data={"source": "tensors", "validation": "data.npz"})


@dataclass(frozen=True)
class Mistake:
    words: Callable[[Workplace], list[str]]
    sentence: str
    code: int = 1


def run(make: Callable[[Workplace], str], *more: str) -> Callable[[Workplace], list[str]]:
    """Return the words of `qbw-eval run` for the checkpoint that `make` writes, and `more`."""
    return lambda place: ["run", make(place), *more]


def good(_place: Workplace) -> str:
    return "good.pt"


def wider(place: Workplace) -> str:
    return place.config(model={"width": 8})


def with_yaml(old: str, new: str) -> Callable[[Workplace], list[str]]:
    """Return the words of `qbw-eval run good.pt --config e.yaml`, the file with one mistake in it."""
    assert YAML.count(old) == 1
    return lambda place: ["run", "good.pt", "--config", place.write("e.yaml", YAML.replace(old, new))]


OWN = "; a network of your own is named as a factory in a file given with --config (README, Your own network)"

MISTAKES: dict[str, Mistake] = {
    # --- which checkpoint
    "no checkpoint": Mistake(lambda _: ["run"], "Missing argument 'CKPT...'.", 2),
    "missing file": Mistake(
        lambda _: ["run", "nowhere.pt"],
        "nowhere.pt: no such file or folder; name a checkpoint, a folder of checkpoints or a glob",
        2,
    ),
    "folder without checkpoints": Mistake(
        lambda p: ["run", p.inside("notes/a.txt", 1)],
        "notes: a folder without checkpoints; expected files that end in .pt, .pth, .pth.tar or .safetensors",
        2,
    ),
    "glob without matches": Mistake(
        lambda _: ["run", "epoch_*.pt"],
        "epoch_*.pt: no file matches the pattern; name a checkpoint, a folder of checkpoints or a glob",
        2,
    ),
    "trusts another file": Mistake(
        run(lambda p: p.write("a.pt", p.good), "--trust-pickle", "b.pt"),
        "--trust-pickle b.pt: is none of the checkpoints named; name the very file",
        2,
    ),
    "more than --max-bytes": Mistake(
        run(lambda p: p.write("a.pt", b"PK" * 600), "--max-bytes", "1kB"),
        "a.pt: holds 1,200 bytes, more than the 1,000 that a checkpoint may; allow it more with --max-bytes",
    ),
    # --- what is in the file
    "text file": Mistake(
        run(lambda p: p.write("a.pt", "these are no weights\n")),
        "a.pt: expected a file written by torch.save, found text",
    ),
    "empty file": Mistake(
        run(lambda p: p.write("a.pt", b"")),
        "a.pt: expected a file written by torch.save, found an empty file; is it still being written?",
    ),
    "truncated zip": Mistake(
        run(lambda p: p.write("a.pt", p.good[:-3000])),
        "a.pt: expected a file written by torch.save, found a zip archive that was cut short; is it still being "
        "written or copied?",
    ),
    "one byte changed": Mistake(
        run(lambda p: p.write("a.pt", p.good.replace(b"bitwidth_options", b"bitwidth_0ptions", 1))),
        "a.pt: damaged: the record 'archive/data.pkl' fails its checksum; copy the file again",
    ),
    "wants os.system": Mistake(
        run(lambda p: p.checkpoint(config=Runs())),
        "bad.pt: wants to run posix.system while loading, which QBW never does; save it again with tensors, "
        f"numbers and text only{WAY_ROUND}",
    ),
    "whole module": Mistake(
        run(lambda p: p.checkpoint(model_state_dict=torch.nn.Linear(1, 1))),
        "bad.pt: holds a whole network (torch.nn.modules.linear.Linear), which only its own code can read; "
        f"save its state_dict() instead{WAY_ROUND}",
    ),
    "no model_state_dict": Mistake(
        run(lambda p: p.checkpoint(without="model_state_dict")),
        "bad.pt: expected a dict with 'model_state_dict', as `qbw-eval train` writes, or with 'state_dict' and "
        "'model', as Any-Precision DNN does; found the keys "
        "['config', 'epoch', 'optimizer_state_dict', 'quantization_method', 'val_acc', 'val_loss']" + OWN,
    ),
    "only a state dict": Mistake(
        run(lambda p: p.save({"conv1.weight": torch.ones(1)})),
        "bad.pt: expected a dict with 'model_state_dict', as `qbw-eval train` writes, or with 'state_dict' and "
        "'model', as Any-Precision DNN does; found the keys ['conv1.weight']" + OWN,
    ),
    "a list": Mistake(
        run(lambda p: p.save([1, 2])),
        "bad.pt: expected a dict with 'model_state_dict', as `qbw-eval train` writes, or with 'state_dict' and "
        "'model', as Any-Precision DNN does; found list" + OWN,
    ),
    "state dict of numbers": Mistake(
        run(lambda p: p.checkpoint(model_state_dict={"w": 1.0})),
        "bad.pt: model_state_dict['w'] is not a tensor under a name",
    ),
    "another width": Mistake(
        run(wider),
        "bad.pt: its weights do not fit the network that its configuration describes: conv1.weight: is (4, "
        "1, 3, 3) in the checkpoint, (8, 1, 3, 3) in the network; bn1.weight: is (4,) in the checkpoint, (8,) in the "
        "network; bn1.bias: is (4,) in the checkpoint, (8,) in the network; bn1.running_mean: is (4,) "
        "in the checkpoint, (8,) in the network; bn1.running_var: is (4,) in the checkpoint, (8,) in the network; "
        "and 41 more; was it saved from another width, number of classes or clipping?",
    ),
    "unknown layer": Mistake(
        run(lambda p: p.weights(layer9__weight=torch.zeros(1))),
        "bad.pt: its weights do not fit the network that its configuration describes: layer9.weight: not in "
        "the network; was it saved from another network, or another version of its code?",
    ),
    "missing layer": Mistake(
        run(lambda p: p.weights(layer1__0__conv1__weight=None)),
        "bad.pt: its weights do not fit the network that its configuration describes: layer1.0.conv1.weight: "
        "missing from the checkpoint; was it saved from another network, or another version of its code?",
    ),
    "whole-number weights": Mistake(
        run(lambda p: p.weights(conv1__weight=torch.zeros(4, 1, 3, 3, dtype=torch.int64))),
        "bad.pt: its weights do not fit the network that its configuration describes: conv1.weight: is "
        "torch.int64 in the checkpoint, torch.float32 in the network; weights are floating-point numbers here; "
        "was it saved from a network converted to whole numbers?",
    ),
    "no epoch": Mistake(
        run(lambda p: p.checkpoint(without="epoch")), "bad.pt: 'epoch' must be a whole number from 0, found None"
    ),
    "epoch true": Mistake(
        run(lambda p: p.checkpoint(epoch=True)), "bad.pt: 'epoch' must be a whole number from 0, found True"
    ),
    "epoch -1": Mistake(
        run(lambda p: p.checkpoint(epoch=-1)), "bad.pt: 'epoch' must be a whole number from 0, found -1"
    ),
    "epoch as text": Mistake(
        run(lambda p: p.checkpoint(epoch="3")), "bad.pt: 'epoch' must be a whole number from 0, found '3'"
    ),
    "no configuration": Mistake(
        run(lambda p: p.checkpoint(without="config")),
        "bad.pt: has no 'config' that describes the network; name one with --config file.yaml",
    ),
    "no configuration, and a file that only names data": Mistake(
        lambda p: ["run", p.checkpoint(without="config"), "--config", p.write("d.yaml", "data: {source: digits}\n")],
        "bad.pt: has no 'config' that describes the network; name one with --config file.yaml that has the keys model "
        "and quantization too",
    ),
    "configuration is text": Mistake(
        run(lambda p: p.checkpoint(config="resnet8")),
        "bad.pt: has no 'config' that describes the network; name one with --config file.yaml",
    ),
    "configuration with an unknown key": Mistake(
        run(lambda p: p.config(model={"widht": 4})),
        "bad.pt: config: model.widht: unknown key; did you mean 'width'?",
        2,
    ),
    "configuration with a wrong type": Mistake(
        run(lambda p: p.config(data={"batch_size": "256"})),
        "bad.pt: config: data.batch_size: expected a whole number, found '256'",
        2,
    ),
    # --- the experiment file
    "missing experiment file": Mistake(
        lambda _: ["run", "good.pt", "--config", "nowhere.yaml"],
        "nowhere.yaml: no such file; expected an experiment file (YAML)",
        2,
    ),
    "YAML: unknown key": Mistake(
        with_yaml("training:", "trainig:"), "e.yaml:4:1: trainig: unknown key; did you mean 'training'?", 2
    ),
    "YAML: only data, an unknown key": Mistake(
        lambda p: ["run", "good.pt", "--config", p.write("d.yaml", "data: {source: digits}\nmodle: resnet8\n")],
        "d.yaml:2:1: modle: unknown key; did you mean 'model'?",
        2,
    ),
    "YAML: no data": Mistake(
        lambda p: ["run", "good.pt", "--config", p.write("d.yaml", "experiment: mine\n")],
        "d.yaml:1:1: data: this key is missing",
        2,
    ),
    "YAML: wrong type": Mistake(
        with_yaml("epochs: 1", "epochs: many"), "e.yaml:4:20: training.epochs: expected a whole number, found 'many'", 2
    ),
    "YAML: duplicate key": Mistake(
        with_yaml("experiment: mine\n", "experiment: mine\nexperiment: yours\n"),
        "e.yaml:2:1: experiment: this key is given twice (first in line 1); keep one",
        2,
    ),
    "YAML: syntax": Mistake(
        with_yaml("{source: digits}", "{source: digits"),
        "e.yaml:4:9: not valid YAML: while parsing a flow mapping, expected ',' or '}', but got ':'",
        2,
    ),
    "YAML: two mistakes": Mistake(
        with_yaml("width: 4, in_channels: 1", "width: 0, in_chanels: 1"),
        "e.yaml:2:31: model.width: expected at least 1, found 0\ne.yaml:2:34: model.in_chanels: unknown key; "
        "did you mean 'in_channels'?",
        2,
    ),
    # --- options
    "unknown option": Mistake(
        run(good, "--bitwidth", "2"), "No such option '--bitwidth'. Did you mean '--bitwidths'?", 2
    ),
    "unknown command": Mistake(lambda _: ["eval", "good.pt"], "No such command 'eval'.", 2),
    "--num-configs 0": Mistake(
        run(good, "--num-configs", "0"), "Invalid value for '--num-configs': 0 is not in the range 1<=x<=1000000.", 2
    ),
    "--num-configs many": Mistake(
        run(good, "--num-configs", "many"), "Invalid value for '--num-configs': 'many' is not a valid integer range.", 2
    ),
    "--seed -1": Mistake(
        run(good, "--seed", "-1"), "Invalid value for '--seed': -1 is not in the range 0<=x<=9223372036854775807.", 2
    ),
    "--sampler lhs": Mistake(
        run(good, "--sampler", "lhs"),
        "Invalid value for '--sampler': 'lhs' is not one of 'stratified', 'iid', 'uniform', 'one-layer', 'neighbours', "
        "'file'.",
        2,
    ),
    "--bitwidths garbage": Mistake(
        run(good, "--bitwidths", "2;4"),
        "Invalid value for '--bitwidths': expected whole numbers from 1 to 32 with commas between, found '2;4'",
        2,
    ),
    "--bitwidths 64": Mistake(
        run(good, "--bitwidths", "2,64"),
        "Invalid value for '--bitwidths': expected whole numbers from 1 to 32 with commas between, found '2,64'",
        2,
    ),
    "--bitwidths not among the options": Mistake(
        run(good, "--bitwidths", "2,3,5"),
        "--bitwidths: 3, 5 not among the options [2, 4, 8] (or 32) that good.pt was trained with",
        2,
    ),
    "--device cuda without CUDA": Mistake(
        run(good, "--device", "cuda"),
        "--device: 'cuda' asked for, but torch finds no CUDA GPU on this machine; use --device auto or cpu",
    ),
    "--device cuda:1 without CUDA": Mistake(
        run(good, "--device", "cuda:1"),
        "--device: 'cuda:1' asked for, but torch finds no CUDA GPU on this machine; use --device auto or cpu",
    ),
    "--device nonsense": Mistake(
        run(good, "--device", "tpu"), "--device: expected auto, cpu, cuda or cuda:INDEX, found 'tpu'", 2
    ),
    "--device cuda:x": Mistake(
        run(good, "--device", "cuda:x"), "--device: expected auto, cpu, cuda or cuda:INDEX, found 'cuda:x'", 2
    ),
    "--engine fast": Mistake(
        run(good, "--engine", "fast"),
        "Invalid value for '--engine': 'fast' is not one of 'auto', 'reference', 'incremental', 'integer'.",
        2,
    ),
    "--memory much": Mistake(
        run(good, "--memory", "much"),
        "Invalid value for '--memory': expected a size such as 800MB, 4GiB or a number of bytes, found 'much'",
        2,
    ),
    # --- data
    "--split test of digits": Mistake(
        run(good, "--split", "test"), "--split: 'digits' has the splits ['train', 'validation'], not 'test'", 2
    ),
    "--split that is not named": Mistake(
        run(lambda p: p.data(np.zeros((4, 1, 8, 8), np.float32), np.arange(4)), "--split", "train"),
        "data.train: the experiment names no file for the split 'train'; add it, or use --split",
        2,
    ),
    "data of other channels": Mistake(
        run(lambda p: p.data(np.zeros((4, 3, 8, 8), np.float32), np.arange(4))),
        "data: inputs have 3 channels, the network of bad.pt takes 1",
    ),
    "data of too many classes": Mistake(
        run(lambda p: p.data(np.zeros((4, 1, 8, 8), np.float32), np.array([0, 1, 2, 10]))),
        "data: the largest label is 10, the network of bad.pt has 10 classes, counted from 0",
    ),
    "labels missing": Mistake(
        run(lambda p: p.data(np.zeros((4, 1, 8, 8), np.float32), np.arange(3))),
        "data.npz: labels are torch.int64 of shape (3,); expected one whole number, "
        "or one one-hot row, for each of the 4 inputs",
    ),
    "data file missing": Mistake(
        run(lambda p: p.config(data={"source": "tensors", "validation": "nowhere.npz"})),
        "nowhere.npz: no such file; data.validation must name a .pt, .npz or .safetensors file with inputs and labels",
    ),
    "safetensors file that is none": Mistake(
        run(lambda p: p.config(data={"source": "tensors", "validation": p.write("data.safetensors", "words")})),
        "data.safetensors: expected a safetensors file, found 5 bytes; is it still being written?",
    ),
    "image folder missing": Mistake(
        run(lambda p: p.config(data={**IMAGE_FOLDER, "validation": "nowhere"})),
        "nowhere: no such folder; data.validation must name a folder that holds a folder of images for each class",
    ),
    "image that is none": Mistake(
        run(
            lambda p: (
                p.write("images/a/1.png", "words"),
                p.write("images/b/1.png", "words"),
                p.config(data={**IMAGE_FOLDER, "validation": "images"}),
            )[-1]
        ),
        "images/a/1.png: expected an image (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP), found something else; "
        "remove it, or hide it with a leading dot",
    ),
    # --- records
    "records is a file": Mistake(
        lambda p: ["run", "good.pt", "--limit", "8", "--records", p.write("taken", "mine")],
        "taken: not a folder (Not a directory); name another one with --records",
    ),
    "records below a file": Mistake(
        lambda p: ["run", "good.pt", "--limit", "8", "--records", p.write("taken", "mine") + "/records"],
        "taken/records: not a folder (Not a directory); name another one with --records",
    ),
    "file where temporary files go": Mistake(
        lambda p: ["run", "good.pt", "--quiet", "--limit", "8", "--records", p.inside("r/.qbw", 1) + "/records"],
        "r/records/0-schema.parquet: cannot be written (r/.qbw is no folder); what "
        "was committed before is safe: free some space or name another folder with --records, and run the "
        "same command again",
    ),
    # --- training and inspecting
    "train: missing file": Mistake(
        lambda _: ["train", "nowhere.yaml"], "nowhere.yaml: no such file; expected an experiment file (YAML)", 2
    ),
    "train: method that does not exist": Mistake(
        lambda p: ["train", p.write("e.yaml", YAML), "--quantization-method", "frist"],
        "e.yaml:1:1: --quantization-method: expected a method under quantization, found 'frist' (methods: "
        "'first'); did you mean 'first'?",
        2,
    ),
    # --- watch
    "watch: no folder": Mistake(lambda _: ["watch"], "Missing argument 'DIR'.", 2),
    "watch: missing folder": Mistake(
        lambda _: ["watch", "nowhere"],
        "nowhere: cannot be watched (No such file or directory); "
        "name the folder that training writes its checkpoints into",
        2,
    ),
    "watch: a file": Mistake(
        lambda _: ["watch", "good.pt"],
        "good.pt: expected a folder, found a file; to evaluate it: qbw-eval run good.pt",
        2,
    ),
    "watch: --every without a unit": Mistake(
        lambda _: ["watch", ".", "--every", "5"],
        "Invalid value for '--every': expected a time from 0.1s to 30d, such as 5s, 10m or 1h, found '5'",
        2,
    ),
    "watch: --settle that is no time": Mistake(
        lambda _: ["watch", ".", "--settle", "soon"],
        "Invalid value for '--settle': expected a time from 0.1s to 30d, such as 5s, 10m or 1h, found 'soon'",
        2,
    ),
    "watch: looking without a pause": Mistake(
        lambda _: ["watch", ".", "--every", "0s"],
        "Invalid value for '--every': expected a time from 0.1s to 30d, such as 5s, 10m or 1h, found '0s'",
        2,
    ),
    "watch: --until-idle before anything can be ready": Mistake(
        lambda _: ["watch", ".", "--until-idle", "5s"],
        "--until-idle: expected at least 10s, as --every and --settle add up to, found 5s; "
        "before that no file can become ready",
        2,
    ),
    "watch: --once and --until-idle": Mistake(
        lambda _: ["watch", ".", "--once", "--until-idle", "10m"],
        "--once: goes without --until-idle, since it does not wait for anything new",
        2,
    ),
    "watch: missing experiment file": Mistake(
        lambda _: ["watch", ".", "--config", "other.yaml"],
        "other.yaml: no such file; expected an experiment file (YAML)",
        2,
    ),
    "watch: --no-resume": Mistake(lambda _: ["watch", ".", "--no-resume"], "No such option '--no-resume'.", 2),
    # --- train and inspect
    "train: earlier checkpoints": Mistake(
        lambda p: ["train", p.write("e.yaml", YAML), "--out", p.inside("o/mine/checkpoints/epoch_001.pt", 3)],
        "o/mine/checkpoints: holds 1 checkpoints of an earlier training; name another --out, change "
        "'experiment' in the file, or say --overwrite",
    ),
    "train: out is a file": Mistake(
        lambda p: ["train", p.write("e.yaml", YAML), "--out", p.write("o", "mine")],
        "o/mine/checkpoints: cannot be written (Not a directory); name another folder with --out",
    ),
    "train: no training data": Mistake(
        lambda p: [
            "train",
            p.write("e.yaml", YAML.replace("source: digits", "source: tensors, validation: data.npz")),
        ],
        "data.train: the experiment names no file for the split 'train'; add it, or use --split",
        2,
    ),
    "inspect: missing file": Mistake(
        lambda _: ["inspect", "nowhere.pt"], "nowhere.pt: cannot be read (No such file or directory)"
    ),
    "inspect: folder": Mistake(
        lambda p: ["inspect", p.inside("notes/a.txt", 1)], "notes: cannot be read (Is a directory)"
    ),
    "inspect: two files": Mistake(
        lambda _: ["inspect", "good.pt", "good.pt"], "Got unexpected extra argument (good.pt)", 2
    ),
}


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A folder to make mistakes in, with records of an earlier evaluation that must survive them."""
    monkeypatch.chdir(tmp_path)
    RecordStore(tmp_path / "results" / "records").append(CHECKPOINT_ID, PLAN_ID, rows_of(0, 3))
    return Workplace(tmp_path, tiny_checkpoints / "epoch_003.pt")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_changes_no_record(
    name: str, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # as on a machine without a GPU
    mistake = MISTAKES[name]
    words = mistake.words(place)
    before = contents(place.folder)
    outcome = qbw_eval(*words)
    assert outcome.stderr == f"qbw-eval: error: {mistake.sentence}\n"
    assert (outcome.code, outcome.stdout) == (mistake.code, "")
    assert contents(place.folder) == before


def test_there_are_many_kinds_of_mistakes_and_no_two_of_them_read_the_same() -> None:
    same = [  # mistakes that are the same one, made in another way
        ("configuration is text", "no configuration"),
        ("train: missing file", "missing experiment file"),
        ("train: no training data", "--split that is not named"),
    ]
    assert all(MISTAKES[one].sentence == MISTAKES[other].sentence for one, other in same)
    others = MISTAKES.keys() - {one for one, _ in same}
    assert len({MISTAKES[name].sentence for name in others}) == len(others) >= 50


def test_the_same_place_without_a_mistake_is_fine(place: Workplace) -> None:
    """The control: what makes the cases above fail is the mistake, not the place."""
    outcome = qbw_eval("run", "good.pt", "--limit", "8", "--num-configs", "2", "--quiet")
    assert (outcome.code, outcome.stderr) == (0, "")
    config = place.write("e.yaml", YAML)
    words = ("--limit", "8", "--num-configs", "2", "--quiet")
    outcome = qbw_eval("run", place.checkpoint(), "--config", config, *words)
    assert (outcome.code, outcome.stderr) == (0, "")
    data = place.data(np.zeros((4, 1, 8, 8), np.float32), np.arange(4))
    assert qbw_eval("run", data, "--num-configs", "2").code == 0


def test_without_torch_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("qbw_eval.cli.cli", lambda **_: not_installed())
    outcome = qbw_eval("run", "good.pt")
    assert outcome.stderr == (
        "qbw-eval: error: torch is not installed; evaluating needs it (reports do not): pip install 'qbw[eval]'\n"
    )
    assert outcome.code == 1


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("qbw_eval.cli.cli", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        qbw_eval("run", "good.pt")


IN_A_PROCESS = ("missing file", "wants os.system", "YAML: two mistakes")


def test_the_console_script_says_the_same_in_a_process_of_its_own(place: Workplace) -> None:
    """All at once: most of their time is importing torch."""
    script = str(Path(sys.executable).with_name("qbw-eval"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": one_thread()}
    processes = {}
    for name in IN_A_PROCESS:
        folder = place.folder / name
        folder.mkdir()
        own = Workplace(folder, place.folder / "good.pt")
        processes[name] = subprocess.Popen([script, *MISTAKES[name].words(own)], cwd=folder, **pipes)  # type: ignore[call-overload]  # a dict of keywords
    for name, process in processes.items():
        stdout, stderr = process.communicate()
        assert stderr == f"qbw-eval: error: {MISTAKES[name].sentence}\n"
        assert (process.returncode, stdout) == (MISTAKES[name].code, "")
        assert not (place.folder / name / "results").exists()
        assert not (place.folder / name / "canary").exists()
