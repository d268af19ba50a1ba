"""An index of samples: read, normalized and preprocessed as a few lines of plain torch do it; or refused in words."""

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data import Runs
from torch import Tensor

from qbw_eval.checkpoints.safe_load import CheckpointError
from qbw_eval.data import normalization, room, samples
from qbw_eval.data.errors import DataError
from qbw_eval.data.labels import label_of_sample
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split
from qbw_eval.settings.data import DataSettings
from schemas.errors import QBWError

SHAPES = {"front": {"audio": (1, 4, 6), "seismic": (24,)}, "back": {"audio": (1, 4, 6), "seismic": (24,)}}
METHODS = ["standard", "minmax", "maxabs", "none"]

Values = dict[str, dict[str, Tensor]]


def random_values(source: torch.Generator) -> Values:
    """Return a sample's values, of another size in every place."""
    return {
        location: {
            modality: torch.randn(shape, generator=source) * (1 + len(location) * len(modality)) + len(modality)
            for modality, shape in modalities.items()
        }
        for location, modalities in SHAPES.items()
    }


def write_samples(folder: Path, count: int, seed: int) -> list[tuple[Values, int]]:
    """Write samples 0.pt and so on, and an index beside the folder; return what they hold."""
    source = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    made = [(random_values(source), index * 7 % 5) for index in range(count)]
    for index, (values, label) in enumerate(made):
        torch.save({"data": values, "label": {"vehicle_type": label, "distance": 0.5}}, folder / f"{index}.pt")
    folder.with_suffix(".txt").write_text("".join(f"{folder.name}/{index}.pt\n" for index in range(count)))
    return made


def settings(folder: Path, **more: Any) -> DataSettings:
    """Return settings for the indices train.txt and val.txt in a folder."""
    return DataSettings.model_validate(
        {
            "source": "sample_index",
            "train": folder / "train.txt",
            "validation": folder / "val.txt",
            "num_segments": 4,
            "normalization": {"method": "none"},
            **more,
        }
    )


def load(folder: Path, beside: Path | None = None, **more: Any) -> Split:
    return load_split(settings(folder, **more), "validation", beside=beside)


def refusal(folder: Path, **more: Any) -> str:
    with pytest.raises(QBWError) as error:
        load(folder, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def plainly(
    made: Sequence[tuple[Values, int]], training: Sequence[tuple[Values, int]], method: str, ends: tuple[float, float]
) -> Values:
    """Return the inputs as one would write it for data that fit into memory twice."""
    result: Values = {}
    for location, modalities in SHAPES.items():
        result[location] = {}
        for modality in modalities:
            raw = torch.stack([values[location][modality] for values, _ in training]).double()
            x = torch.stack([values[location][modality] for values, _ in made]).double()
            if method == "standard":
                x = (x - raw.mean()) / raw.std()
            elif method == "minmax":
                x = (x - raw.min()) / (raw.max() - raw.min()) * (ends[1] - ends[0]) + ends[0]
            elif method == "maxabs":
                x = x / raw.abs().max()
            if x.ndim < 4:
                x = x.reshape(len(x), 1, 4, -1)
            both = torch.fft.fft(x)
            planes = [part for c in range(x.shape[1]) for part in (both.real[:, c], both.imag[:, c])]
            result[location][modality] = torch.stack(planes, dim=1)
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_samples(tmp_path / "train", 11, seed=1)
    write_samples(tmp_path / "val", 7, seed=2)
    return tmp_path


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (-2.0, 5.0)])
def test_inputs_are_what_plain_torch_makes_of_them(tmp_path: Path, method: str, ends: tuple[float, float]) -> None:
    training, made = write_samples(tmp_path / "train", 11, seed=1), write_samples(tmp_path / "val", 7, seed=2)
    split = load(tmp_path, normalization={"method": method, "minmax_range": ends})
    expected = plainly(made, training, method, ends)
    assert list(split.inputs) == list(expected) == ["front", "back"]
    for location, modalities in expected.items():
        assert list(split.inputs[location]) == list(modalities) == ["audio", "seismic"]
        for modality, tensor in modalities.items():
            found = split.inputs[location][modality]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), tensor, rtol=2e-5, atol=2e-4)
    assert split.labels.tolist() == [label for _, label in made]
    assert (split.dataset, split.name, len(split), split.image_shape) == ("val", "validation", 7, None)


def test_without_fft_channels_stay(folder: Path) -> None:
    split = load(folder, fft=False)
    content = torch.load(folder / "val/3.pt", weights_only=True)
    assert torch.equal(split.inputs["front"]["audio"][3], content["data"]["front"]["audio"])
    assert torch.equal(split.inputs["back"]["seismic"][3], content["data"]["back"]["seismic"].reshape(1, 4, 6))


def test_only_what_is_asked_for_is_taken_in_that_order(folder: Path) -> None:
    whole, split = load(folder), load(folder, locations=["back", "front"], modalities=["seismic"])
    assert list(split.inputs) == ["back", "front"]
    assert all(list(modalities) == ["seismic"] for modalities in split.inputs.values())
    assert torch.equal(split.inputs["back"]["seismic"], whole.inputs["back"]["seismic"])


def test_the_order_in_later_samples_does_not_matter(folder: Path) -> None:
    before = load(folder)
    content = torch.load(folder / "val/3.pt", weights_only=True)
    turned = {
        location: dict(reversed(modalities.items())) for location, modalities in reversed(content["data"].items())
    }
    torch.save({"label": content["label"], "data": turned}, folder / "val/3.pt")
    assert load(folder).data_id() == before.data_id()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int16, torch.uint8])
def test_raw_numbers_of_any_real_type_become_float32_as_they_are(folder: Path, dtype: torch.dtype) -> None:
    values = torch.arange(24).to(dtype)
    for file in (folder / "val").iterdir():
        torch.save({"data": {"here": {"audio": values}}, "label": 1}, file)
    split = load(folder, fft=False)
    assert split.inputs["here"]["audio"].dtype == torch.float32
    assert split.inputs["here"]["audio"][0].flatten().tolist() == list(range(24))


def test_tensors_that_were_saved_wanting_a_gradient_are_samples_all_the_same(folder: Path) -> None:
    before = load(folder, normalization={"method": "standard"})
    for file in [*(folder / "val").iterdir(), *(folder / "train").iterdir()]:
        content = torch.load(file, weights_only=True)
        content["data"]["front"]["audio"].requires_grad_()
        torch.save(content, file)
    assert load(folder, normalization={"method": "standard"}).data_id() == before.data_id()


def test_tensors_whose_sign_torch_put_off_changing_are_samples_all_the_same(folder: Path) -> None:
    before = load(folder, normalization={"method": "standard"})
    for file in [*(folder / "val").iterdir(), *(folder / "train").iterdir()]:
        content = torch.load(file, weights_only=True)
        content["data"]["front"]["audio"] = torch._neg_view(-content["data"]["front"]["audio"])
        torch.save(content, file)
    assert load(folder, normalization={"method": "standard"}).data_id() == before.data_id()


def test_limit_reads_no_more(folder: Path) -> None:
    for index in range(2, 7):
        (folder / f"val/{index}.pt").unlink()
    split = load_split(settings(folder), "validation", limit=2)
    assert (len(split), split.inputs["front"]["audio"].shape) == (2, (2, 2, 4, 6))


def test_torchs_threads_are_as_before_and_do_not_matter(folder: Path) -> None:
    for file in (folder / "val").iterdir():  # 16 values: MKL's spectra differ in the last place there
        torch.save({"data": {"here": {"audio": torch.rand(1, 10, 16)}}, "label": 1}, file)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(load(folder).data_id())
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("slow", [False, True])
def test_reading_ahead_from_a_slow_disk_changes_nothing(
    folder: Path, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [Path(f"{index}.pt") for index in range(200)]
    touched: list[Path] = []
    monkeypatch.setattr(samples, "_SLOW_S", -1.0 if slow else 1e9)
    monkeypatch.setattr(samples, "_fetch", touched.append)
    assert list(samples.fetched(files)) == files
    assert sorted(touched) == sorted(files if slow else files[::64])
    monkeypatch.undo()
    before = load(folder).data_id()
    monkeypatch.setattr(samples, "_SLOW_S", -1.0 if slow else 1e9)
    assert load(folder).data_id() == before


def test_what_does_not_fit_into_memory_is_refused_with_the_first_sample(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "val/1.pt").write_bytes(b"never read")
    monkeypatch.setattr(room, "free_memory", lambda _device: 4000)
    # 7 samples of 4 x 24 complex numbers of 8 bytes.
    assert refusal(folder) == (
        f"{folder}/val.txt: 7 samples need 0.0 MiB of memory, more than 0.0 MiB (three quarters of what is free); "
        "use fewer (--limit)"
    )
    monkeypatch.setattr(room, "free_memory", lambda _device: 7 * 4 * 24 * 8 * 4 // 3 + 1)
    assert refusal(folder).startswith(f"{folder}/val/1.pt: expected a file written by torch.save")


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "key"),
    [
        (3, None),
        (torch.tensor(3), None),
        (torch.tensor([3], dtype=torch.int16), None),
        (torch.tensor([0, 0, 0, 1]), None),
        (torch.tensor([0.0, 0, 0, 1]), None),
        ({"vehicle_type": 3, "terrain": 1}, None),
        ({"vehicle_type": torch.tensor([0.0, 0, 0, 1]), "terrain": 1}, None),
        ({"speed": 3}, None),
        ({"vehicle_type": 1, "terrain": 3}, "terrain"),
        ({"vehicle_type": 1, "terrain": torch.tensor(3)}, "terrain"),
        (3, "terrain"),
        (np.int64(3), None),
    ],
)
def test_labels_may_be_numbers_tensors_one_hot_or_in_a_dict(label: object, key: str | None, folder: Path) -> None:
    for file in (folder / "val").iterdir():
        torch.save({**torch.load(file, weights_only=True), "label": label}, file)
    split = load(folder, label=key)
    assert (split.labels.dtype, split.labels.tolist()) == (torch.int64, [3] * 7)


@pytest.mark.parametrize(
    ("label", "key", "sentence"),
    [
        (-1, None, "label is -1; expected a whole number from 0 to 99,999, a tensor that holds one, or a one-hot "),
        (True, None, "label is True; expected a whole number"),
        (2.0, None, "label is 2.0; expected a whole number"),
        ("car", None, "label is 'car'; expected a whole number"),
        (None, None, "label is nothing; expected a whole number"),
        (100_000, None, "label is 100000; expected a whole number"),
        (b"car", None, "label is an object of type bytes; expected a whole number"),
        (2**70, None, "label is a whole number of many digits; expected a whole number"),
        (torch.tensor(2.0), None, "labels are torch.float32 of shape (1,); expected one whole number"),
        (torch.tensor(-2), None, "the smallest label is -2; classes count from 0"),
        (torch.tensor(10**6), None, "the largest label is 1000000; expected fewer than 100,000 classes"),
        (torch.tensor([0, 2, 1]), None, "labels of shape (1, 3) are read as one-hot, but row 0 has the value 2;"),
        (torch.tensor([]), None, "labels have shape (1, 0); expected class numbers"),
        (torch.zeros(2, 2), None, "label is torch.float32 of shape (2, 2); expected a whole number"),
        (
            {"a": 1, "b": 2},
            None,
            "label has no key 'vehicle_type'; say with data.label which it is (it has: 'a', 'b')",
        ),
        ({}, None, "label has no key 'vehicle_type'; say with data.label which it is (it has: none)"),
        ({"a": 1}, "c", "label has no key 'c'; say with data.label which it is (it has: 'a')"),
        ({"vehicle_type": {"a": 1}}, None, "label is a dict of 1; expected a whole number"),
    ],
)
def test_what_is_no_label_is_named_with_its_file(label: object, key: str | None, sentence: str, folder: Path) -> None:
    content = torch.load(folder / "val/0.pt", weights_only=True)
    torch.save({**content, "label": label}, folder / "val/0.pt")
    assert refusal(folder, label=key).startswith(f"{folder}/val/0.pt: {sentence}")


def test_a_label_of_more_digits_than_python_writes_is_no_traceback() -> None:
    with pytest.raises(DataError, match=r"^here: label is a whole number of many digits; expected a whole number"):
        label_of_sample(10**5000, None, "here")


# --- samples that cannot be used --------------------------------------------------------------------------------------

AUDIO = torch.zeros(1, 4, 6)


def both(front: object, back: object) -> dict[str, object]:
    return {"label": 1, "data": {"front": front, "back": back}}


PAIR = {"audio": AUDIO, "seismic": torch.zeros(24)}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1], "expected a dict with 'data' ({location: {modality: tensor}}) and 'label', found a list of 1"),
        ({"data": {}}, "expected a dict with 'data' ({location: {modality: tensor}}) and 'label', found ['data']"),
        (
            {"data": AUDIO, "label": 1},
            "expected a dict with 'data' ({location: {modality: tensor}}) and 'label', found ['data', 'label']",
        ),
        (
            {"data": {"front": PAIR}, "label": 1},
            "data: expected the locations ['front', 'back'], as {first} has, found ['front']",
        ),
        (
            both({"audio": AUDIO, "seismic": torch.zeros(24), "radar": AUDIO}, PAIR),
            "data['front']: expected the modalities ['audio', 'seismic'], as {first} has, "
            "found ['audio', 'seismic', 'radar']",
        ),
        (both(AUDIO, PAIR), "data['front']: expected a dict of a tensor per modality, found torch.float32 of shape "),
        (
            both(PAIR, PAIR | {"audio": torch.zeros(1, 4, 7)}),
            "data['back']['audio']: expected shape (1, 4, 6), as in {first}, found (1, 4, 7)",
        ),
        (
            both(PAIR, PAIR | {"audio": [1, 2]}),
            "data['back']['audio']: expected a tensor of real numbers, found a list of 2",
        ),
        (
            both(PAIR, PAIR | {"audio": AUDIO.to(torch.complex64)}),
            "data['back']['audio']: expected a tensor of real numbers, found torch.complex64 of shape (1, 4, 6)",
        ),
        (
            both(PAIR, PAIR | {"audio": AUDIO.bool()}),
            "data['back']['audio']: expected a tensor of real numbers, found torch.bool of shape (1, 4, 6)",
        ),
        (
            both(PAIR, PAIR | {"audio": torch.full((1, 4, 6), float("nan"))}),
            "data['back']['audio']: 24 values are NaN or infinite; take it out of the index",
        ),
        (
            both(PAIR, PAIR | {"audio": torch.full((1, 4, 6), 1e300, dtype=torch.float64)}),
            "data['back']['audio']: 24 values are NaN or infinite; take it out of the index",
        ),
        (
            both(PAIR, PAIR | {"audio": torch.full((1, 4, 6), 3e38)}),
            "data['back']['audio']: its values are too large to be normalized or turned into a spectrum",
        ),
    ],
)
def test_a_sample_unlike_the_first_is_named(content: object, sentence: str, folder: Path) -> None:
    torch.save(content, folder / "val/4.pt")
    expected = f"{folder}/val/4.pt: {sentence.replace('{first}', f'{folder}/val/0.pt')}"
    assert refusal(folder).startswith(expected)


@pytest.mark.parametrize(
    ("data", "more", "sentence"),
    [
        ({}, {}, "data: expected locations by name, found []"),
        ({1: PAIR}, {}, "data: expected locations by name, found [1]"),
        ({"front": {}}, {}, "data['front']: expected modalities by name, found []"),
        ({"front": PAIR}, {"locations": ["back"]}, "data: data.locations asks for 'back', found ['front']"),
        (
            {"front": PAIR},
            {"modalities": ["radar"]},
            "data['front']: data.modalities asks for 'radar', found ['audio', 'seismic']",
        ),
        ({"front": {"a": torch.zeros(0)}}, {}, "data['front']['a']: expected a tensor of real numbers, found torch.fl"),
        (
            {"front": {"a": torch.zeros(25)}},
            {},
            "data['front']['a']: a sample of shape (25,), whose 25 values cannot be cut into data.num_segments: 4",
        ),
        ({"front": PAIR}, {"num_segments": None}, "data['front']['seismic']: a sample of shape (24,), which has no "),
        ({"front": {"a": torch.zeros(1, 1, 1, 4)}}, {}, "data['front']['a']: a sample of shape (1, 1, 1, 4); expected"),
    ],
)
def test_a_first_sample_that_cannot_be_used_is_named(
    data: object, more: dict[str, Any], sentence: str, folder: Path
) -> None:
    torch.save({"data": data, "label": 1}, folder / "val/0.pt")
    assert refusal(folder, **more).startswith(f"{folder}/val/0.pt: {sentence}")


def test_files_that_are_not_there_or_no_torch_files_are_named(folder: Path) -> None:
    (folder / "val/5.pt").unlink()
    assert refusal(folder) == f"{folder}/val/5.pt: no such file; its index lists it"
    (folder / "val/5.pt").write_text("words")
    assert refusal(folder).startswith(f"{folder}/val/5.pt: expected a file written by torch.save")


def test_a_sample_that_wants_to_run_something_is_refused(folder: Path) -> None:
    canary = folder / "canary"
    torch.save({"data": {"front": Runs(f"touch {canary}")}, "label": 1}, folder / "val/3.pt")
    with pytest.raises(CheckpointError, match=r"val/3\.pt: wants to run .*system.* while loading"):
        load(folder)
    assert not canary.exists()


# --- indices ----------------------------------------------------------------------------------------------------------


def test_blank_lines_and_blanks_around_paths_are_passed_over(folder: Path) -> None:
    before = load(folder)
    lines = (folder / "val.txt").read_text().splitlines()
    (folder / "val.txt").write_bytes(("\ufeff\r\n" + "".join(f"  {line}\t\r\n\n" for line in lines)).encode())
    assert load(folder).data_id() == before.data_id()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", ": lists no files; expected the path of a .pt file a line"),
        (b"\n  \n", ": lists no files; expected the path of a .pt file a line"),
        (b"val/0.pt\nval/1.npz\n", ":2: expected the path of a .pt file, found 'val/1.npz'"),
        (b"val/0.pt,3\n", ":1: expected the path of a .pt file, found 'val/0.pt,3'"),
        (b"val/\x00.pt\n", r":1: expected the path of a .pt file, found 'val/\x00.pt'"),
        (b"val/\x1b[2J.pt\n", r":1: expected the path of a .pt file, found 'val/\x1b[2J.pt'"),
        (b"x" * 4094 + b".pt\n", ":1: expected the path of a .pt file, found 'xxx"),
    ],
)
def test_a_line_that_is_no_path_is_named(content: bytes, sentence: str, folder: Path) -> None:
    (folder / "val.txt").write_bytes(content)
    assert refusal(folder).startswith(f"{folder}/val.txt{sentence}")


@pytest.mark.parametrize("name", ["x" * 300 + ".pt", "/home/" + "x" * 300 + ".pt"])
def test_a_name_that_no_file_can_bear_is_a_file_that_is_not_there(name: str, folder: Path) -> None:
    (folder / "val.txt").write_text(f"{name}\n")
    assert " lists, 'xx" in refusal(folder) or " lists, '/home/xx" in refusal(folder)
    assert f"no end of its path is a file below data.root ({folder})" in refusal(folder, root=folder)
    before = (folder / "train.txt").read_text().splitlines()
    (folder / "val.txt").write_text(f"{before[0]}\n{name}\n")
    assert refusal(folder).endswith(".pt: no such file; its index lists it")
    assert "no such file" in refusal(folder, validation=folder / name)


def test_what_would_have_to_be_waited_for_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Some of the system's own files say that they are files, and give nothing until something happens. So does a pipe,
    # here held open and said to be a file.
    for name in ("val.txt", "val/0.pt"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    monkeypatch.setattr(samples, "is_file", Path.exists)
    ends = [os.open(folder / name, os.O_RDWR) for name in ("val.txt", "val/0.pt")]
    try:
        assert refusal(folder) == f"{folder}/val.txt: lists no files; expected the path of a .pt file a line"
        (folder / "val.txt").unlink()
        (folder / "val.txt").write_text("val/0.pt\n")
        assert refusal(folder) == f"{folder}/val/0.pt: expected a checkpoint, found a pipe, socket or device"
    finally:
        for end in ends:
            os.close(end)


def test_an_index_of_too_many_lines_is_refused_before_any_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_SAMPLES", 2)
    (folder / "val.txt").write_text("no path\n" * 3)
    assert refusal(folder) == (
        f"{folder}/val.txt: has more than 2 lines; is it an index of samples? Split it into several"
    )


def test_an_index_that_is_none_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_INDEX", 10)
    assert refusal(folder) == f"{folder}/val.txt: is larger than 0 MiB; is it an index, a path a line?"
    (folder / "val.txt").unlink()
    assert refusal(folder) == (
        f"{folder}/val.txt: no such file; data.validation must name an index file, which lists .pt files"
    )
    assert refusal(folder, root=folder / "val") == (
        f"{folder}/val.txt: no such file, nor is it below data.root ({folder}/val); data.validation must name an "
        "index file, which lists .pt files"
    )


def rewrite(folder: Path, change: Callable[[str], str]) -> None:
    index = folder / "val.txt"
    index.write_text("".join(f"{change(line)}\n" for line in index.read_text().splitlines()))


def test_absolute_paths_are_taken_as_they_are_even_with_a_root(folder: Path) -> None:
    before = load(folder)
    rewrite(folder, lambda line: f"{folder}/{line}")
    (folder / "elsewhere").mkdir()
    shutil.move(folder / "val.txt", folder / "elsewhere/val.txt")
    for root in (None, folder / "train"):
        assert load(folder, validation=folder / "elsewhere/val.txt", root=root).data_id() == before.data_id()


@pytest.mark.parametrize("written", ["/home/alice/data/{}", "/val/{}", "/home/{}", "{}", "deep/{}"])
def test_root_stands_in_for_what_is_not_there(folder: Path, written: str) -> None:
    before = load(folder)
    (folder / "indices").mkdir()
    shutil.move(folder / "val.txt", folder / "indices/val.txt")
    index = folder / "indices/val.txt"
    index.write_text("".join(f"{written.format(line)}\n" for line in index.read_text().splitlines()))
    assert load(folder, validation=index, root=folder).data_id() == before.data_id()


@pytest.mark.parametrize("written", ["/home/alice/val.txt", "/val.txt", "val.txt", "alice/val.txt"])
def test_an_index_that_is_not_there_is_looked_for_below_root(folder: Path, written: str) -> None:
    before = load(folder)
    assert load(folder, validation=Path(written), root=folder).data_id() == before.data_id()
    # The longest end of its path is the likeliest.
    (folder / "alice").mkdir()
    (folder / "alice/val.txt").write_text("../val/1.pt\n")
    count = 1 if "alice" in written else 7
    assert len(load(folder, validation=Path(written), root=folder)) == count


def test_the_longest_end_of_a_path_wins_and_no_two_files_become_one(folder: Path) -> None:
    # Files of the same names in two folders: an index of both must never read one of them twice.
    for name in ("a", "b"):
        shutil.copytree(folder / ("train" if name == "a" else "val"), folder / f"set/{name}")
    shutil.copy(folder / "train/3.pt", folder / "set/0.pt")
    index = folder / "both.txt"
    index.write_text("".join(f"/elsewhere/set/{name}/{number}.pt\n" for name in "ab" for number in range(3)))
    found = samples.read_index(index, folder / "set", "data.test").files
    assert found == tuple(folder / f"set/{name}/{number}.pt" for name in "ab" for number in range(3))
    assert samples.read_index(index, folder, "data.test").files == found
    with pytest.raises(DataError) as error:  # the root is one of the two: its files would stand in for the other's
        samples.read_index(index, folder / "set/a", "data.test")
    assert str(error.value) == (
        f"{index}: data.root replaces '/elsewhere/set/a', as the first file needs it, and '/elsewhere/set/b/0.pt' does "
        "not begin with that; list files below one folder"
    )


def test_a_first_file_that_is_nowhere_is_named_with_the_remedy(folder: Path) -> None:
    rewrite(folder, lambda line: f"/home/alice/{line}")
    assert refusal(folder) == (
        f"{folder}/val.txt: the first file it lists, '/home/alice/val/0.pt', is not there; "
        "name the folder that holds the samples here with data.root"
    )
    assert refusal(folder, root=folder / "train/none") == (
        f"{folder}/val.txt: the first file it lists, '/home/alice/val/0.pt', is not there; "
        f"no end of its path is a file below data.root ({folder}/train/none) either"
    )
    (folder / "val.txt").write_text("nowhere/0.pt\n")
    assert refusal(folder).startswith(
        f"{folder}/val.txt: the first file it lists, 'nowhere/0.pt', is not in {folder}; name the folder"
    )


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_differently_normalized_inputs_are_different_data(folder: Path) -> None:
    found = {load(folder, normalization={"method": method}).data_id() for method in METHODS}
    found.add(load(folder, normalization={"method": "minmax", "minmax_range": [-1, 1]}).data_id())
    found.add(load(folder, fft=False).data_id())
    found.add(load(folder, num_segments=6).data_id())
    assert len(found) == 7


def test_only_the_training_index_decides_and_each_of_its_samples_once(folder: Path) -> None:
    standard = {"normalization": {"method": "standard"}}
    before = load(folder, **standard)
    # A loader that resamples, as people's training loops do, meets some samples twice and others never: other inputs.
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "train.txt").write_text("".join(f"{random.Random(0).choice(lines)}\n" for _ in lines))
    resampled = load(folder, **standard)
    assert resampled.data_id() != before.data_id()
    # And one that shuffles gives them but for rounding.
    (folder / "train.txt").write_text("".join(f"{line}\n" for line in random.Random(0).sample(lines, len(lines))))
    shuffled = load(folder, **standard)
    torch.testing.assert_close(shuffled.inputs["front"]["audio"], before.inputs["front"]["audio"])
    # What is evaluated does not matter.
    (folder / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    rewrite(folder, lambda line: line.replace("val/1", "val/2"))
    assert torch.equal(load(folder, **standard).inputs["front"]["audio"][0], before.inputs["front"]["audio"][0])


def test_a_broken_training_sample_is_named(folder: Path) -> None:
    content = torch.load(folder / "train/3.pt", weights_only=True)
    content["data"]["front"]["audio"][0, 0, 0] = float("inf")
    torch.save(content, folder / "train/3.pt")
    load(folder)
    assert refusal(folder, normalization={"method": "maxabs"}) == (
        f"{folder}/train/3.pt: data['front']['audio']: 1 values are NaN or infinite; take it out of the index"
    )


def test_a_place_that_training_samples_do_not_have_is_named(folder: Path) -> None:
    for file in (folder / "val").iterdir():
        torch.save({"data": {"side": {"audio": AUDIO}}, "label": 1}, file)
    assert refusal(folder, normalization={"method": "maxabs"}) == (
        f"{folder}/val/0.pt: data['side']['audio']: the samples of data.train, which normalization is fitted on, "
        "have none"
    )


def kept_fits(folder: Path) -> list[Path]:
    return sorted((folder / "normalization").iterdir())


STANDARD: dict[str, Any] = {"normalization": {"method": "standard"}}


def test_a_fit_is_kept_and_taken_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = tmp_path / "results"
    before = load(folder, beside, **STANDARD)
    (path,) = kept_fits(beside)
    content = json.loads(path.read_text())
    assert {key: content[key] for key in ("format", "method", "index", "samples")} == {
        "format": 1,
        "method": "standard",
        "index": f"{folder}/train.txt",
        "samples": 11,
    }
    assert content["fingerprint"] == path.stem
    audio = [torch.load(folder / f"train/{n}.pt", weights_only=True)["data"]["front"]["audio"] for n in range(11)]
    moments = content["moments"]["front"]["audio"]
    assert moments["count"] == 11 * 24
    assert moments["mean"] == pytest.approx(torch.stack(audio).double().mean().item())
    monkeypatch.setattr(normalization, "fit", lambda *_: pytest.fail("the training samples are read again"))
    assert load(folder, beside, **STANDARD).data_id() == before.data_id()
    assert load_split(settings(folder, **STANDARD), "train", beside=beside).labels.shape == (11,)


def test_nothing_is_kept_where_there_is_nothing_to_keep_or_no_place(folder: Path, tmp_path: Path) -> None:
    load(folder, tmp_path / "results")  # the method none
    assert not (tmp_path / "results").exists()
    (tmp_path / "file").write_text("in the way")
    assert load(folder, tmp_path / "file", **STANDARD).data_id() == load(folder, **STANDARD).data_id()


def touched(folder: Path) -> None:
    path = folder / "train/3.pt"
    content = torch.load(path, weights_only=True)
    found = path.stat()
    content["data"]["front"]["audio"] += 1
    torch.save(content, path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # the same size and time of writing, as archives give


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "a file's content": (touched, {}),
    "the index": (lambda folder: (folder / "train.txt").write_text("train/0.pt\ntrain/1.pt\n"), {}),
    "locations": (lambda _: None, {"locations": ["front"]}),
    "modalities": (lambda _: None, {"modalities": ["audio"]}),
    "the method": (lambda _: None, {"normalization": {"method": "maxabs"}}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_fit_of_anything_else_is_not_taken(change: str, folder: Path, tmp_path: Path) -> None:
    load(folder, tmp_path, **STANDARD)
    make, more = CHANGES[change]
    make(folder)
    assert load(folder, tmp_path, **(STANDARD | more)).data_id() == load(folder, **(STANDARD | more)).data_id()
    assert len(kept_fits(tmp_path)) == 2


def changed(place: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["moments"]["front"]["audio"].__setitem__(place, value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.__setitem__("format", 2),
        lambda content: content.__setitem__("samples", 12),
        lambda content: content.__setitem__("fingerprint", "0" * 32),
        lambda content: content.__setitem__("moments", []),
        lambda content: content["moments"].__setitem__("front", 3),
        lambda content: content.pop("moments"),
        lambda content: content["moments"]["front"]["audio"].pop("mean"),
        changed("more", 1.0),
        changed("mean", float("nan")),
        changed("mean", 1e30),
        changed("mean", "1"),
        changed("mean", None),
        changed("squares", -1.0),
        changed("squares", float("inf")),
        changed("count", 0),
        changed("count", 23),
        changed("count", 264.0),
        changed("count", True),
        changed("minimum", 1e9),
    ],
)
def test_a_kept_fit_that_makes_no_sense_is_made_again(
    spoil: Callable[[dict[str, Any]], object], folder: Path, tmp_path: Path
) -> None:
    before = load(folder, tmp_path, **STANDARD)
    (path,) = kept_fits(tmp_path)
    right = path.read_text()
    content = json.loads(right)
    spoil(content)
    path.write_text(json.dumps(content))
    assert load(folder, tmp_path, **STANDARD).data_id() == before.data_id()
    assert kept_fits(tmp_path) == [path]
    assert path.read_text() == right


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "3", "\xff"])
def test_a_kept_fit_that_is_no_json_is_made_again(text: str, folder: Path, tmp_path: Path) -> None:
    before = load(folder, tmp_path, **STANDARD)
    (path,) = kept_fits(tmp_path)
    path.write_text(text, encoding="latin-1")
    assert load(folder, tmp_path, **STANDARD).data_id() == before.data_id()
    assert json.loads(path.read_text())["samples"] == 11


def test_a_fit_while_files_change_is_not_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = normalization.fit

    def fit(*arguments: Any) -> Any:
        found = real(*arguments)
        touched(folder)
        return found

    monkeypatch.setattr(normalization, "fit", fit)
    load(folder, tmp_path, **STANDARD)
    assert not (tmp_path / "normalization").exists()
