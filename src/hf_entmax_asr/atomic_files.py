"""Files and folders that are whole or absent: written under another name, flushed to the disk, then renamed.

The other name is hidden, begins with that of the target and is nobody else's: two writers never share it, and no link
laid there is followed. What a killed process left under such a name is put right by `recover_folders`.
"""

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_PARTIAL, _OLD = ".partial", ".old"
_RENAME_EXCHANGE = 2  # of Linux's renameat2
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.EBADF)  # file systems that know no such thing
_NAME_CHARACTERS = 40  # of a file's name in its temporary one, which must not become too long


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `target`, which takes its place on success and vanishes on failure."""
    check_folder_writable(target)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _hidden_folder(target, _PARTIAL)
    try:
        yield partial
        for folder, _, files in os.walk(partial):
            for name in files:
                _flush(Path(folder) / name)
            _flush(Path(folder))
        _put(partial, target)
        _flush(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file that takes the name `path` on success and vanishes on failure.

    A link is followed, so that the file it names is replaced and not the link; what is no regular file, as a named pipe
    or /dev/stdout, is written into.
    """
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_stream(path):
        with path.open("wb") as stream:
            yield stream
        return
    path = path.resolve()
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
    descriptor, partial = tempfile.mkstemp(_PARTIAL, f".{path.name[:_NAME_CHARACTERS]}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    _flush(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file as `atomic_file` does."""
    content = text.encode()
    with atomic_file(path) as file:
        file.write(content)


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, whether a file can be written at `path`.

    Raises:
        OSError: it is a folder, or nothing may be written there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write")
    _check_place(path)
    if is_stream(path):
        return
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} must not be written")


def check_folder_writable(path: Path) -> None:
    """The same for a folder to write into, which may be there already.

    Raises:
        OSError: it is a file, or nothing may be written there.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; name a folder to write")
    _check_place(path)
    if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} must not be written")


def recover_folders(parent: Path) -> None:
    """Put right what processes killed inside `atomic_folder` left in `parent`, where nobody writes now.

    A folder that was set aside and never replaced comes back, everything else that is hidden for this goes.
    """
    for left in sorted(parent.glob(f".*{_OLD}")):
        target = parent / left.name.removesuffix(_OLD).rpartition(".")[0].removeprefix(".")
        if left.is_dir() and target != parent and not target.exists():
            left.rename(target)
    for ending in (_OLD, _PARTIAL):
        for left in parent.glob(f".*{ending}"):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _put(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`, in the place of what stands there."""
    if not target.exists():
        partial.rename(target)
    elif _exchange(partial, target):
        shutil.rmtree(partial)
    else:
        old = _hidden_folder(target, _OLD)
        target.rename(old)  # over the empty folder
        try:
            partial.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one move, which no kill can fall into; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    # The folders that relative names would begin at, here 0, do not count for absolute ones.
    names = [os.fsencode(path.absolute()) for path in (one, other)]
    return rename(0, names[0], 0, names[1], _RENAME_EXCHANGE) == 0


def _hidden_folder(target: Path, ending: str) -> Path:
    folder = Path(tempfile.mkdtemp(ending, f".{target.name}.", target.parent))
    folder.chmod(0o777 & ~_umask())
    return folder


def is_stream(path: Path) -> bool:
    """Whether it is there and no regular file, or a name of one that this process holds open."""
    return path.exists() and (not path.is_file() or path.absolute().parts[1:2] in (("dev",), ("proc",)))


def _check_place(path: Path) -> None:
    """OSError where nothing may be made under the nearest folder that exists, or the name is too long."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()  # any other error says what is wrong with the name
    place = path
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if place == path:
        return
    if not place.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: {place} must not be written")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Bring a file or the names in a folder to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # written, but not to be read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)
