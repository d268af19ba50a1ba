"""Small file systems of our own: tmpfs, and ext4 and xfs in a file. Root only; tests skip elsewhere, and say why."""

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are one number
_NO_LOG_FLUSH = 2  # drop what the journal has not written yet, as a power cut does


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def skip_unless_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """Mount a tmpfs of so many bytes while the block runs."""
    skip_unless_root()
    folder.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    except OSError as error:
        pytest.skip(f"no tmpfs can be mounted: {error}")
    try:
        yield folder
    finally:
        _run("umount", folder)


def grow_tmpfs(folder: Path, size: int) -> None:
    _run("mount", "-o", f"remount,size={size}", folder)


class Disk:
    """A file system in a file, which can lose its power."""

    def __init__(self, kind: str, image: Path, folder: Path) -> None:
        self.folder = folder
        self._image = image
        with image.open("wb") as file:
            file.truncate({"ext4": 64, "xfs": 320}[kind] * 2**20)
        _run(f"mkfs.{kind}", "-q", image)
        folder.mkdir()
        self.mount()

    def mount(self) -> None:
        """Mount it, which replays the journal."""
        _run("mount", "-o", "loop", self._image, self.folder)

    def unmount(self) -> None:
        _run("umount", self.folder)

    def cut_power(self) -> None:
        """Drop everything that is not on the disk; all that use it get EIO until it is mounted again."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


@contextmanager
def disk(kind: str, where: Path) -> Iterator[Disk]:
    """Make and mount an ext4 or xfs of our own while the block runs."""
    skip_unless_root()
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"no mkfs.{kind} on this machine")
    try:
        made = Disk(kind, where / f"{kind}.img", where / kind)
    except OSError as error:
        pytest.skip(f"no {kind} can be mounted: {error}")
    try:
        yield made
    finally:
        made.unmount()
