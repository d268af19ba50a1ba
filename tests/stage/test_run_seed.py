"""`qbw-eval run`, `inspect` and `train` on what the seed's training code reads and leaves behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from any_precision_files import save
from seed_files import SENSORS, seed_config, seed_content, seed_state, write_samples
from seed_reference import seed_logits
from stage_references import Outcome, qbw_eval

from qbw_eval.checkpoints.read import read_checkpoint
from qbw_eval.data.sources import load_split
from qbw_eval.nested import places
from schemas.layers import LAYER_SCHEMA

NAME = "20251118_220531_ResNet_resnet18"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with samples and an experiment of three files: two of the same epoch, one earlier."""
    folder = tmp_path_factory.mktemp("seed")
    indexes = write_samples(folder / "samples", {"train": 24, "val": 15})
    models = folder / "experiments" / NAME / "models"
    models.mkdir(parents=True)
    config = seed_config(index_files=indexes)
    late = seed_content(seed_state("resnet18"), config, epoch=9)
    save(late, models / "best_model.pth")
    save(late, models / "checkpoint_epoch_10.pth")
    save(seed_content(seed_state("resnet18", seed=1), config, epoch=4), models / "checkpoint_epoch_5.pth")
    return folder


def run(place: Path, records: Path, *words: object) -> Outcome:
    """Run `qbw-eval run`, which must succeed."""
    outcome = qbw_eval("run", place / "experiments" / NAME, "--records", records, *words)
    assert outcome.code == 0, outcome.stderr
    return outcome


def preprocessed(index: Path, train: Path) -> tuple[dict[str, dict[str, np.ndarray]], list[int]]:
    """NumPy's answer: standardized with the training samples' moments, then real and imaginary part as channels."""

    def samples(file: Path) -> list[dict[str, Any]]:
        return [torch.load(line, weights_only=True) for line in file.read_text().split()]

    inputs: dict[str, dict[str, np.ndarray]] = {}
    for location, modalities in SENSORS.items():
        inputs[location] = {}
        for modality in modalities:
            fitted = np.stack([s["data"][location][modality].numpy() for s in samples(train)]).astype(np.float64)
            raw = np.stack([s["data"][location][modality].numpy() for s in samples(index)]).astype(np.float64)
            spectra = np.fft.fft((raw - fitted.mean()) / fitted.std(ddof=1), axis=-1)
            parts = np.stack([spectra.real, spectra.imag], axis=2)  # (n, channels, part, segments, values)
            inputs[location][modality] = parts.reshape(raw.shape[0], -1, *raw.shape[2:])
    return inputs, [int(s["label"]["vehicle_type"]) for s in samples(index)]


def test_an_experiment_gives_rows_without_any_file_of_ours(place: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    outcome = run(place, records, "--sampler", "iid", "--num-configs", 6, "--engine", "incremental")
    assert "checkpoint_epoch_10.pth: the same weights and epoch as" in outcome.stderr
    assert "training said" in outcome.stdout
    assert "0.6250" in outcome.stdout
    rows = pd.read_parquet(records)
    assert sorted(set(rows["checkpoint"])) == ["best_model.pth", "checkpoint_epoch_5.pth"]
    assert set(rows["experiment"]) == {NAME}
    assert sorted(set(rows["epoch"])) == [4, 9]
    assert len(rows) == 12
    assert {json.loads(text)["val_acc"] for text in rows["extras_json"]} == {0.625}

    inputs, labels = preprocessed(place / "samples/val_index.txt", place / "samples/train_index.txt")
    checkpoint = read_checkpoint(place / "experiments" / NAME / "models" / "best_model.pth")
    split = load_split(checkpoint.experiment.data, "validation")
    assert split.labels.tolist() == labels
    for place_of, tensor in places(split.inputs):
        location, modality = place_of.split(".")
        np.testing.assert_allclose(tensor.numpy(), inputs[location][modality], atol=1e-4)
    names = pd.read_parquet(tmp_path / "layers")["layer_name"].tolist()
    for file, of_checkpoint in rows.groupby("checkpoint"):
        content = torch.load(place / "experiments" / NAME / "models" / str(file), weights_only=False)
        for row in of_checkpoint.to_dict("records"):
            bits = dict(zip(names, map(int, row["bitwidths"]), strict=True))  # in NumPy's int8, 2**8 is 0
            with torch.no_grad():
                logits = seed_logits(content["model_state_dict"], content["config"], bits, split.inputs)
            assert int((logits.argmax(dim=1) == split.labels).sum()) == row["correct"]
            loss = torch.nn.functional.cross_entropy(logits.double(), split.labels)
            assert row["loss"] == pytest.approx(float(loss), abs=1e-6)


def test_the_fit_is_kept_beside_the_records_and_the_next_run_takes_it(place: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    run(place, records, "--num-configs", 1, "--sampler", "iid")
    (fit,) = (tmp_path / "normalization").glob("*.json")
    before = fit.read_bytes()
    again = run(place, records, "--num-configs", 1, "--sampler", "iid")
    assert "Nothing to do" in again.stdout
    assert fit.read_bytes() == before


def test_paths_of_another_machine_are_found_below_the_data_root(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "here"
    shutil.copytree(place / "samples", moved / "samples")
    config = seed_config(index_files={split: f"/theirs/data/samples/{split}_index.txt" for split in ("train", "val")})
    for split in ("train", "val"):
        index = moved / "samples" / f"{split}_index.txt"
        index.write_text(index.read_text().replace(str(place), "/theirs/data"))
    path = save(seed_content(seed_state("resnet18"), config), tmp_path / "best_model.pth")
    words = ("run", path, "--records", tmp_path / "records", "--num-configs", 2, "--sampler", "iid")
    refused = qbw_eval(*words)
    assert refused.code == 1
    assert "no such file" in refused.stderr
    outcome = qbw_eval(*words, "--data-root", moved)
    assert outcome.code == 0, outcome.stderr
    assert len(pd.read_parquet(tmp_path / "records")) == 2


def test_a_data_root_goes_with_a_sample_index_only(tiny_checkpoints: Path, tmp_path: Path) -> None:
    outcome = qbw_eval("run", tiny_checkpoints / "epoch_001.pt", "--records", tmp_path / "r", "--data-root", tmp_path)
    assert outcome.code == 2
    assert outcome.stderr.splitlines()[-1] == (
        "qbw-eval: error: --data-root: goes with the source 'sample_index' only, the data are 'digits'"
    )


def test_without_quantization_there_is_one_row_and_a_sentence(place: Path, tmp_path: Path) -> None:
    indexes = {split: str(place / "samples" / f"{split}_index.txt") for split in ("train", "val")}
    config = seed_config(enable=False, index_files=indexes)
    path = save(seed_content(seed_state("resnet18", weight=None, activation=None), config), tmp_path / "best_model.pth")
    outcome = qbw_eval("run", path, "--records", tmp_path / "records")
    assert outcome.code == 0, outcome.stderr
    assert (
        f"{path}: quantization is off (quantization.enable: false), so there is nothing to vary: "
        "one configuration, every layer at 32 bits" in outcome.stderr
    )
    (row,) = pd.read_parquet(tmp_path / "records").to_dict("records")
    assert set(row["bitwidths"]) == {32}
    assert row["avg_bitwidth"] == 32


def test_inspect_needs_no_data(tmp_path: Path) -> None:
    path = save(seed_content(seed_state("resnet18"), seed_config()), tmp_path / "best_model.pth")
    outcome = qbw_eval("inspect", path, "--json")
    assert outcome.code == 0, outcome.stderr
    shown = json.loads(outcome.stdout)
    assert shown["bitwidth_options"] == [2, 4, 8]
    assert len(shown["layers"]) == 2 * (16 + 3)  # two sensors; 16 convolutions and 3 shortcuts of a ResNet-18
    first = shown["layers"][0]
    assert first["layer_name"] == "mod_loc_backbones.shake.seismic.layer1.0.conv1"
    assert set(LAYER_SCHEMA.names) - {"model_id", "layer_index"} <= set(first)
    # 4 segments and 20 bins: the stem and its pooling leave 1 x 5; width 4.
    assert first["macs"] == 1 * 5 * 4 * 4 * 9


def test_inspect_asks_the_data_where_the_number_of_bins_is_not_written(place: Path, tmp_path: Path) -> None:
    indexes = {split: str(place / "samples" / f"{split}_index.txt") for split in ("train", "val")}
    config = seed_config(index_files=indexes)
    with_bins = save(seed_content(seed_state("resnet18"), config), tmp_path / "with.pth")
    del config["loc_mod_spectrum_len"]
    without = save(seed_content(seed_state("resnet18"), config), tmp_path / "without.pth")
    layers = [json.loads(qbw_eval("inspect", path, "--json").stdout)["layers"] for path in (with_bins, without)]
    assert layers[0] == layers[1]


def test_training_from_the_seeds_yaml_writes_its_layout(place: Path, tmp_path: Path) -> None:
    indexes = {split: f"samples/{split}_index.txt" for split in ("train", "val")}
    config = seed_config(index_files=indexes, options=(8, 2, 4))
    config["ResNet"]["lr_scheduler"]["train_epochs"] = 1  # of a network of full width
    config["quantization"]["random_bitwidths"] = {"number_of_configs": 2}
    for key in ("model", "model_variant", "quantization_method", "yaml_path", "device"):
        del config[key]
    config["quantization"]["other"] = {"bitwidth_options": [8]}
    shutil.copytree(place / "samples", tmp_path / "samples")
    (tmp_path / "Parkland.yaml").write_text(yaml.safe_dump(config))
    outcome = qbw_eval(
        *("train", tmp_path / "Parkland.yaml", "--model", "ResNet", "--model-variant", "resnet18"),
        *("--quantization-method", "any_precision", "--device", "cpu", "--out", tmp_path / "experiments"),
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.count("Random Bitwidths Validation Statistics:") == 1
    (folder,) = (tmp_path / "experiments").iterdir()
    assert folder.name.endswith("_ResNet_resnet18")
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "logs", "models", "experiment_summary.yaml"}
    assert outcome.stdout.strip().splitlines()[0] in (folder / "logs/train.log").read_text()
    assert {path.name for path in (folder / "models").iterdir()} == {"last_epoch.pth", "best_model.pth"}
    content = torch.load(folder / "models/last_epoch.pth", weights_only=True)
    assert (content["epoch"], content["quantization_method"]) == (0, "any_precision")
    assert content["config"]["model_variant"] == "resnet18"
    alphas = [tensor.shape for name, tensor in content["model_state_dict"].items() if name.endswith(".alpha")]
    assert set(alphas) == {(3, 1, 1, 1)}
    summary = yaml.safe_load((folder / "experiment_summary.yaml").read_text())
    assert (summary["num_epochs"], summary["bitwidth_options"]) == (1, "[8, 2, 4]")
    # What was written is read again, and computes what its state dict says.
    checkpoint = read_checkpoint(folder / "models/last_epoch.pth")
    assert checkpoint.experiment.experiment == folder.name
    evaluated = qbw_eval("run", folder, "--records", tmp_path / "records", "--num-configs", 1, "--engine", "reference")
    assert evaluated.code == 0, evaluated.stderr


def test_words_for_the_seeds_files_do_not_go_with_ours(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("model: resnet8\ndata: {source: digits}\nquantization: {enable: false}\n")
    outcome = qbw_eval("train", tmp_path / "ours.yaml", "--model-variant", "resnet18", "--out", tmp_path)
    assert outcome.code == 2
    assert outcome.stderr == (
        f"qbw-eval: error: --model-variant: goes with the seed's experiment files; {tmp_path / 'ours.yaml'} "
        "names its network itself\n"
    )


def test_mistakes_in_the_seeds_yaml_are_all_told_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "Parkland.yaml").write_text(
        "model: ResNet\n"
        "model_variant: resnet19\n"
        "location_names: [shake]\n"
        "modality_names: [audio]\n"
        "loc_mod_in_freq_channels: {shake: {audio: 2}}\n"
        "num_segments: ten\n"
        "vehicle_classification: {num_classes: 7}\n"
        "quantization:\n"
        "  enable: true\n"
        "  mine: {bitwidth_options: [2, 99], activation_quantization: pakt}\n"
    )
    outcome = qbw_eval("train", tmp_path / "Parkland.yaml", "--out", tmp_path)
    assert outcome.code == 2
    file = tmp_path / "Parkland.yaml"
    assert outcome.stderr.splitlines() == [
        f"qbw-eval: error: {file}:2:16: model_variant: expected one of resnet18, resnet34, resnet50, resnet101, "
        "resnet152, found 'resnet19'",
        f"{file}:6:15: num_segments: expected a whole number, found 'ten'",
        f"{file}:10:32: quantization.mine.bitwidth_options[1]: expected at most 32, found 99",
        f"{file}:10:62: quantization.mine.activation_quantization: expected 'dorefa', 'pact', 'lsq' or 'lsqplus', "
        "found 'pakt'; did you mean 'pact'?",
    ]
