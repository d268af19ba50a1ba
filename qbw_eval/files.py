"""The file operations that the store is made of, one method a system call, so that tests can make any of them fail."""

import ctypes
import errno
import os
import time
from pathlib import Path

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class Files:
    """The real file system. Every method raises OSError as the system call does."""

    def is_folder(self, path: Path) -> bool:
        """Return whether there is a folder of that name."""
        return path.is_dir()

    def make_folder(self, path: Path) -> None:
        """Create one folder; one that is there is fine."""
        try:
            path.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is no folder") from None

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""
        try:
            return sorted(path.name for path in folder.iterdir())
        except FileNotFoundError:
            return []

    def read(self, path: Path) -> bytes:
        """Return a file's bytes."""
        return path.read_bytes()

    def create(self, path: Path) -> int:
        """Create a file that must be new and return a descriptor for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the data and return how much."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Wait until everything written to the descriptor is on the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor; NFS reports a full disk here."""
        os.close(descriptor)

    def name(self, temporary: Path, final: Path) -> None:
        """Give a finished file its final name, which must be new; the temporary name may stay.

        Raises:
            FileExistsError: the name is taken.
        """
        try:
            os.link(temporary, final)
        except OSError as error:
            if error.errno in _NO_HARD_LINKS:
                _rename_to_new_name(temporary, final)
            # Over NFS a link may report failure and have worked; "file exists" then, where a retry met its own success.
            elif not (temporary.stat().st_nlink == 2 and temporary.samefile(final)):
                raise

    def move(self, path: Path, to: Path) -> None:
        """Rename within a file system."""
        path.rename(to)

    def age(self, path: Path) -> float:
        """Return how many seconds ago a file was last written, by the clocks of this machine and of the disk's."""
        return time.time() - path.stat().st_mtime

    def remove(self, path: Path) -> None:
        """Remove a file; one that is gone is fine."""
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in a folder are on the disk."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename_to_new_name(temporary: Path, final: Path) -> None:
    """Rename where there are no hard links; the kernel refuses a name that is taken, where it can.

    Raises:
        FileExistsError: the name is taken.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(final), _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(final))
    # The last resort is not atomic: between the look and the rename somebody may publish the same rows, which are then
    # replaced by ours. Names are deterministic, so no row is lost or doubled by that.
    if final.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    temporary.replace(final)
