"""Folders of images: what is made of the pixels, in which order, and what is said about everything that is no image."""

import io
import os
import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from stage_references import qbw_eval, scaled_as_pillow_does

from qbw_eval.data import image_folder
from qbw_eval.data.errors import DataError
from qbw_eval.data.fit import check_data_fit, with_data_shape
from qbw_eval.data.sources import load_split
from qbw_eval.data.split import Split, SplitName
from qbw_eval.experiment import experiment_from_mapping
from qbw_eval.settings.data import DataSettings
from schemas.errors import UsageError

MEAN, STD = (0.25, 0.5, 0.125), (0.5, 0.25, 1.0)
ROWS = "; data.validation must name a folder that holds a folder of images for each class"


def settings(folder: Path, **more: Any) -> DataSettings:
    """Return settings that leave the pixels of 4x4 images what they are: numbers from 0 to 1."""
    plain = {"size": 4, "mean": (0, 0, 0), "std": (1, 1, 1), "validation": folder}
    return DataSettings(source="image_folder", **(plain | more))


def load(folder: Path, *, limit: int | None = None, name: SplitName = "validation", **more: Any) -> Split:
    return load_split(settings(folder, **more), name, limit=limit)


def refusal(folder: Path, **more: Any) -> str:
    """Return what is said about a folder that must be refused, without the folder it begins with."""
    with pytest.raises(DataError) as error:
        load(folder, **more)
    sentence = str(error.value)
    assert sentence.isprintable()
    assert sentence.startswith(str(folder))
    return sentence.removeprefix(str(folder))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | None = None, **more: Any) -> Path:
    """Write an image without loss, 4x4 noise unless told; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(4, 4) if pixels is None else pixels).save(path, **more)
    return path


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder of two classes, with one image each."""
    for seed, name in enumerate(("ant", "bee")):
        save(tmp_path / "images" / name / "1.png", noise(4, 4, seed))
    return tmp_path / "images"


def pixels_of(split: Split) -> np.ndarray:
    """Return the inputs (N, height, width, 3) as bytes, where neither mean nor std changed them."""
    return (split.inputs.numpy() * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


# --- which samples, in which order ----------------------------------------------------------------------------------


def test_sorted_folders_are_the_classes_and_sorted_files_the_samples(tmp_path: Path) -> None:
    # By code points: capitals first, 10 before 9; created in another order.
    expected = [
        ("Zebra", "b.png"),
        ("ant", "10.png"),
        ("ant", "9.png"),
        ("ant", "B.PNG"),
        ("bee", "x"),
        ("ähre", "1.bmp"),
    ]
    shuffled = list(enumerate(expected))
    random.Random(0).shuffle(shuffled)
    for seed, (class_name, name) in shuffled:
        save(tmp_path / class_name / name, noise(4, 4, seed), format=None if "." in name else "png")
    split = load(tmp_path)
    assert (split.dataset, split.name, split.image_shape, split.num_classes) == (
        tmp_path.name,
        "validation",
        (3, 4, 4),
        4,
    )
    assert (split.labels.dtype, split.labels.tolist()) == (torch.int64, [0, 1, 1, 1, 2, 3])
    assert np.array_equal(pixels_of(split), np.stack([noise(4, 4, seed) for seed in range(6)]))


def test_folders_in_a_class_are_read_in_the_order_of_a_sorted_walk(folder: Path) -> None:
    for seed, name in enumerate(("z.png", "images/1.png", "images-2/1.png", "images/more/1.png"), start=2):
        save(folder / "ant" / name, noise(4, 4, seed))
    walked = [
        Path(root) / name
        for class_name in ("ant", "bee")
        for root, _, names in sorted(os.walk(folder / class_name))
        for name in sorted(names)
    ]
    expected = np.stack([opened(path) for path in walked])
    split = load(folder)
    assert split.labels.tolist() == [0] * 5 + [1]
    assert np.array_equal(pixels_of(split), expected)


def test_hidden_files_and_folders_are_passed_over(folder: Path) -> None:
    before = load(folder).data_id()
    for name in (".DS_Store", "ant/._1.png", "ant/.cache/x", ".git/config", ".png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    assert load(folder).data_id() == before


def test_lists_beside_the_folders_of_the_classes_are_passed_over(folder: Path) -> None:
    before = load(folder).data_id()
    (folder / "classes.txt").write_text("ant\nbee\n")
    assert load(folder).data_id() == before


def test_links_to_files_and_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    # git-annex and DVC link to files whose own names have no ending.
    before = load(folder).data_id()
    (folder / "ant/1.png").rename(tmp_path / "0badc0de")
    (folder / "ant/1.png").symlink_to(tmp_path / "0badc0de")
    (folder / "bee").rename(tmp_path / "elsewhere")
    (folder / "bee").symlink_to(tmp_path / "elsewhere")
    assert load(folder).data_id() == before


def test_any_number_of_threads_gives_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(80):
        save(tmp_path / "ab"[index % 2] / f"{index}.png", noise(5, 4 + index % 3, index))
    ids = set()
    for threads in (1, 2, 7):
        monkeypatch.setattr(image_folder, "_thread_count", lambda count=threads: count)
        ids.add(load(tmp_path).data_id())
    assert len(ids) == 1


def test_the_fingerprint_is_of_pixels_not_of_files_and_changes_with_the_preprocessing(folder: Path) -> None:
    before = load(folder).data_id()
    save(folder / "ant/1.png", noise(4, 4, 0), compress_level=0)
    assert load(folder).data_id() == before
    others = [load(folder, **more).data_id() for more in ({"mean": MEAN}, {"std": STD}, {"size": 3, "resize": 4})]
    others.append(load(folder, resize=5).data_id())
    save(folder / "ant/1.png", noise(4, 4, 2))
    others.append(load(folder).data_id())
    assert len({before, *others}) == 6


@pytest.mark.parametrize("limit", [1, 40, 70, 100, 1000])
def test_limit_takes_the_first_samples_and_decodes_no_more(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(100):
        save(tmp_path / "ab"[index // 50] / f"{index:03}.png", noise(4, 4, index))
    whole, read = load(tmp_path), []
    one = image_folder._read_image
    monkeypatch.setattr(image_folder, "_read_image", lambda path, *more: read.append(path) or one(path, *more))
    limited = load(tmp_path, limit=limit)
    assert limited.limited(limit).data_id() == whole.limited(limit).data_id()
    assert len(read) == min(limit, 100)
    assert limited.num_classes == whole.num_classes == 2


# --- pixels -> numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "resize", "size"),
    [
        (9, 7, 5, 4),
        (7, 9, 5, 4),
        (8, 8, 8, 8),
        (8, 8, 8, 5),
        (3, 5, 11, 6),
        (40, 30, 6, 6),
        (100, 50, 7, 3),
        (6, 17, 6, 1),
    ],
)
def test_images_are_scaled_cut_and_normalized_as_written_out(
    height: int, width: int, resize: int, size: int, tmp_path: Path
) -> None:
    images = [noise(height, width, seed) for seed in range(2)]
    for name, image in zip("ab", images, strict=True):
        save(tmp_path / name / "1.png", image)
    split = load(tmp_path, size=size, resize=resize, mean=MEAN, std=STD)
    # Torchvision's rules: the longer side is rounded down, the crop's corner to the nearest (ties to even).
    shorter = min(height, width)
    new_height, new_width = (side * resize // shorter for side in (height, width))
    for image, found in zip(images, split.inputs.numpy(), strict=True):
        scaled = scaled_as_pillow_does(image, new_height, new_width)
        top, left = round((new_height - size) / 2), round((new_width - size) / 2)
        centre = scaled[top : top + size, left : left + size]
        expected = np.empty((3, size, size), np.float32)
        for channel in range(3):
            share = centre[:, :, channel].astype(np.float32) / np.float32(255)
            expected[channel] = (share - np.float32(MEAN[channel])) / np.float32(STD[channel])
        assert np.array_equal(found, expected)


def test_the_defaults_only_cut() -> None:
    assert settings(Path("x"), size=7).resize == 7


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def with_alpha() -> Image.Image:
    image = Image.fromarray(noise(4, 4))
    image.putalpha(Image.fromarray(noise(4, 4, 1)[:, :, 0]))
    return image


def with_transparent_palette() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(4, 4)).quantize(8).save(buffer, "PNG", transparency=bytes(range(8)))
    return buffer.getvalue()


GRAY = noise(4, 4)[:, :, 0]
KINDS: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    "gray": lambda: (as_png(Image.fromarray(GRAY)), np.stack([GRAY] * 3, axis=2)),
    "black and white": lambda: (
        as_png(Image.fromarray(GRAY > 127)),
        np.stack([(GRAY > 127) * np.uint8(255)] * 3, axis=2),
    ),
    "palette": lambda: (
        as_png(Image.fromarray(GRAY // 32).convert("L").quantize(8)),
        np.stack([GRAY // 32] * 3, axis=2),
    ),
    "transparent": lambda: (as_png(with_alpha()), noise(4, 4)),
    "gray and transparent": lambda: (
        as_png(Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(GRAY.T.copy())))),
        np.stack([GRAY] * 3, axis=2),
    ),
    "palette with transparency": lambda: (
        with_transparent_palette(),
        np.asarray(Image.fromarray(noise(4, 4)).quantize(8).convert("RGB")),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixels_becomes_rgb(kind: str, folder: Path) -> None:
    data, expected = KINDS[kind]()
    (folder / "ant/1.png").write_bytes(data)
    assert np.array_equal(pixels_of(load(folder))[0], expected)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tif", "webp"])
def test_every_format_is_what_pillow_makes_of_it_whatever_it_is_called(suffix: str, folder: Path) -> None:
    path = save(folder / f"ant/2.{suffix}", noise(6, 6))
    expected = opened(path)
    assert np.array_equal(pixels_of(load(folder, size=6))[1], expected)
    path.rename(folder / "ant/2.zzz")
    assert np.array_equal(pixels_of(load(folder, size=6))[1], expected)


def test_the_orientation_that_a_camera_noted_is_not_applied(folder: Path) -> None:
    before = load(folder).data_id()
    noted = Image.Exif()
    noted[0x0112] = 6  # to be turned by 90 degrees
    save(folder / "ant/1.png", noise(4, 4, 0), exif=noted)
    with Image.open(folder / "ant/1.png") as image:
        assert dict(image.getexif()) == {0x0112: 6}
    assert load(folder).data_id() == before


def test_of_several_pictures_the_first_is_taken(folder: Path) -> None:
    for form in ("GIF", "MPO", "TIFF"):
        path = folder / "ant/1.png"
        frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(2)]  # saving marks them
        frames[0].save(path, form, save_all=True, append_images=frames[1:])
        assert np.array_equal(pixels_of(load(folder, size=8, resize=8))[0], opened(path))


def test_a_photograph_in_cmyk_becomes_rgb(folder: Path) -> None:
    Image.fromarray(noise(4, 4)).convert("CMYK").save(folder / "ant/1.png", "JPEG")
    expected = opened(folder / "ant/1.png")
    assert np.array_equal(pixels_of(load(folder))[0], expected)


# --- images that cannot be used -------------------------------------------------------------------------------------


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def whole(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(32, 32)).save(buffer, form)
    return buffer.getvalue()


BOMB = "; the most is 89,478,485; a decompression bomb, or scale it down"
NO_IMAGE = (
    "expected an image (BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP), found {}; remove it, or hide it with a leading dot"
)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", NO_IMAGE.format("an empty file")),
        (b"words", NO_IMAGE.format("something else")),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", NO_IMAGE.format("something else")),
        (png_claiming(9460, 9459), f"has 9460 x 9459 pixels{BOMB}"),
        (png_claiming(20000, 20000), f"has more than 178,956,970 pixels{BOMB}"),
        (png_claiming(2**31 - 1, 2**31 - 1), f"has more than 178,956,970 pixels{BOMB}"),
        (
            png_claiming(80_000_000, 1),
            f"has 80000000 x 1 pixels, and 320000000 x 4 with the shorter side scaled to 4{BOMB}",
        ),
        (
            as_png(Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4))),
            "has pixels of mode I;16; expected 8 bits a channel (gray, palette, RGB, CMYK); "
            "convert it, so that its brightness need not be guessed",
        ),
    ],
)
def test_an_image_that_cannot_be_used_is_named(data: bytes, sentence: str, folder: Path) -> None:
    (folder / "bee/0.png").write_bytes(data)
    assert refusal(folder) == f"/bee/0.png: {sentence}"


def test_pixels_of_32_bits_are_refused(folder: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "ant/2.tif")
    assert refusal(folder).startswith("/ant/2.tif: has pixels of mode F; expected 8 bits a channel")


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_named(form: str, share: float, folder: Path) -> None:
    data = whole(form)
    (folder / "ant/2.png").write_bytes(data[: int(share * len(data))])
    sentence = refusal(folder)
    assert sentence.startswith("/ant/2.png: cannot be decoded (") or sentence.startswith(
        "/ant/2.png: expected an image"
    )
    if sentence.startswith("/ant/2.png: cannot"):
        assert sentence.endswith("); copy it again, or remove it")


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_a_damaged_image_gives_a_sentence_or_an_input(form: str, folder: Path) -> None:
    data, drawn = whole(form), random.Random(form)
    for _ in range(40):
        damaged = bytearray(data)
        for _ in range(drawn.choice([1, 1, 4])):
            damaged[drawn.randrange(min(len(data), drawn.choice([64, len(data)])))] = drawn.randrange(256)
        (folder / "ant/1.png").write_bytes(damaged)
        try:
            said, shape = "", load(folder).inputs.shape
        except DataError as error:
            said, shape = str(error), None
        assert shape == (2, 3, 4, 4) or (said.startswith(f"{folder}/ant/1.png: ") and said.isprintable())


def test_the_first_bad_image_in_order_is_named_however_many_there_are(folder: Path) -> None:
    for index in range(200):
        save(folder / f"ant/{index:03}.png")
    for index in (90, 91, 150, 199):
        (folder / f"ant/{index:03}.png").write_bytes(b"words")
    assert refusal(folder).startswith("/ant/090.png: ")


def test_a_name_that_is_no_line_of_text_is_shown_as_one(folder: Path) -> None:
    (folder / "ant" / "a\nb\x1b[31m.png").write_bytes(b"words")
    with pytest.raises(DataError) as error:
        load(folder)
    assert str(error.value).isprintable()
    assert r"/ant/a\nb\x1b[31m.png': expected an image" in str(error.value)


# --- folders that cannot be used ------------------------------------------------------------------------------------


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "nowhere") == f": no such folder{ROWS}"
    assert refusal(tmp_path / "file") == f": is no folder{ROWS}"


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f": holds 0 folders{ROWS}, 2 to 100,000 of them"
    save(tmp_path / "ant/1.png")
    assert refusal(tmp_path) == f": holds 1 folders{ROWS}, 2 to 100,000 of them"
    save(tmp_path / "1.JPG")
    assert refusal(tmp_path) == f"/1.JPG: lies beside the folders of the classes{ROWS}"


def test_an_empty_class_is_refused(folder: Path) -> None:
    (folder / "ape").mkdir()
    (folder / "ape" / ".hidden.png").write_text("")
    assert refusal(folder) == "/ape: the folder of a class holds no images; add some, or remove it from every split"


def test_links_in_circles_and_folders_met_twice_are_refused(folder: Path) -> None:
    (folder / "bee" / "loop").symlink_to(folder / "bee", target_is_directory=True)
    assert refusal(folder) == f"/bee/loop: leads to the same folder as {folder}/bee; remove one of them"
    (folder / "bee" / "loop").unlink()
    (folder / "bee" / "up").symlink_to("..", target_is_directory=True)
    assert refusal(folder) == f"/bee/up: leads to the same folder as {folder}; remove one of them"
    (folder / "bee" / "up").unlink()
    (folder / "cat").symlink_to("ant", target_is_directory=True)
    assert refusal(folder) == f"/cat: leads to the same folder as {folder}/ant; remove one of them"


def test_links_to_nowhere_and_to_themselves_are_refused(folder: Path) -> None:
    for target, reason in (("nowhere", "No such file or directory"), ("2.png", "Too many levels of symbolic links")):
        (folder / "ant/2.png").symlink_to(target)
        assert refusal(folder) == f"/ant/2.png: cannot be read ({reason}); a link that leads nowhere?"
        (folder / "ant/2.png").unlink()


def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "ant/2.png")
    assert refusal(folder) == "/ant/2.png: expected an image or a folder, found a pipe, socket or device"


def test_splits_with_other_classes_are_refused_and_splits_that_are_elsewhere_are_not(
    folder: Path, tmp_path: Path
) -> None:
    train = tmp_path / "train"
    assert len(load(folder, train=train)) == 2
    for name in ("ant", "bee", "cat"):
        save(train / name / "1.png")
    numbered = "; classes are numbered by their sorted names, so all splits must have the same"
    assert refusal(folder, train=train) == (
        f": data.validation has no folder for the class 'cat', which data.train has{numbered}"
    )
    with pytest.raises(DataError) as error:
        load(train, train=folder)
    assert (
        str(error.value)
        == f"{folder}: data.train has no folder for the class 'cat', which data.validation has{numbered}"
    )
    save(folder / "cat/1.png")
    assert load(folder, train=train).num_classes == 3


def test_a_split_that_is_not_named_says_so(folder: Path) -> None:
    with pytest.raises(UsageError) as error:
        load(folder, name="test")
    assert str(error.value) == "data.test: the experiment names no folder for the split 'test'; add it, or use --split"


def test_without_pillow_the_source_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)  # importing it fails, as if it were not there
    with pytest.raises(DataError) as error:
        load(folder)
    assert str(error.value) == "data.source: 'image_folder' needs Pillow; install it with: pip install 'qbw[eval]'"


# --- memory ---------------------------------------------------------------------------------------------------------


def test_more_than_fits_is_refused_before_anything_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(2, 12):
        (folder / f"bee/{index}.png").write_bytes(b"never looked at")
    monkeypatch.setattr(image_folder, "free_memory", lambda _device: 8 * 2**20)
    assert refusal(folder, size=512, resize=512) == (
        ": 12 images of 3x512x512 need 36.0 MiB of memory, more than 6.0 MiB (three quarters of what is free); "
        "use fewer (--limit), or a smaller data.size"
    )
    assert len(load(folder, size=512, resize=512, limit=2)) == 2
    monkeypatch.setattr(image_folder, "free_memory", lambda _device: 2**32)
    assert "need 36.0 GiB of memory, more than 3.0 GiB" in refusal(folder, size=16384)


# --- data and network -----------------------------------------------------------------------------------------------


def test_a_network_must_have_as_many_classes_as_there_are_folders(folder: Path) -> None:
    mapping = {
        "model": "resnet8",
        "data": settings(folder).model_dump(mode="json"),
        "quantization": {"mine": {"bitwidth_options": [2]}},
    }
    split = load(folder, limit=1)
    experiment = with_data_shape(experiment_from_mapping(mapping, "here"), split)
    assert (experiment.model.num_classes, experiment.model.in_channels) == (2, 3)
    check_data_fit(experiment, split, "the network")
    for classes in (3, 10):
        mapping["model"] = {"name": "resnet8", "num_classes": classes, "in_channels": 3}
        with pytest.raises(DataError) as error:
            check_data_fit(experiment_from_mapping(mapping, "here"), split, "the network")
        assert str(error.value) == (
            f"images: has folders for 2 classes, the network has {classes} classes; "
            "they are numbered by the folders' sorted names, so there must be one for each"
        )


YAML = """\
model: {name: resnet8, width: 4}
data:
  source: image_folder
  train: train
  validation: val
  size: 8
  resize: 9
  mean: [0.25, 0.5, 0.125]
  std: [0.5, 0.25, 1]
training: {epochs: 1, batch_size: 4}
quantization:
  mine: {bitwidth_options: [2, 4]}
"""


def test_a_network_is_trained_and_evaluated_on_folders_of_images(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for index in range(6):
            save(tmp_path / split / "ab"[index // 3] / f"{index}.png", noise(10, 12, index))
    (tmp_path / "images.yaml").write_text(YAML)
    outcome = qbw_eval("train", tmp_path / "images.yaml", "--out", tmp_path / "runs", "--quiet")
    assert outcome.code == 0, outcome.stderr
    command = ("run", tmp_path / "runs", "--records", tmp_path / "r", "--num-configs", 2, "--device", "cpu", "--quiet")
    (tmp_path / "val/b/5.png").write_bytes(b"words")
    assert qbw_eval(*command, "--limit", 4).code == 0, "the sixth image is not needed"
    outcome = qbw_eval(*command)
    assert (outcome.code, outcome.stderr.count("\n")) == (1, 1)
    assert outcome.stderr.startswith(f"qbw-eval: error: {tmp_path}/val/b/5.png: expected an image")
    save(tmp_path / "val/b/5.png", noise(10, 12, 5))
    assert qbw_eval(*command).code == 0
    rows = pq.read_table(tmp_path / "r").to_pylist()
    split = load(tmp_path / "val", size=8, resize=9, mean=MEAN, std=STD)
    assert {(row["dataset"], row["split"], row["num_samples"], row["data_id"]) for row in rows} == {
        ("val", "validation", count, split.limited(count).data_id()) for count in (4, 6)
    }
