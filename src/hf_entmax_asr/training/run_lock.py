"""One training at a time in an output folder."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from hf_entmax_asr.atomic_files import check_folder_writable
from hf_entmax_asr.error_messages import described
from hf_entmax_asr.recognition.checkpoint import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
_held: set[Path] = set()  # by this process, to which the system grants every lock again


@contextmanager
def locked(output: Path, accelerator: Any) -> Iterator[None]:
    """Hold the folder of a run inside the block. The system frees it when the process ends, however it ends.

    Of several processes that train together the main one holds it, for all.

    Raises:
        CheckpointError: another training works in the folder (the message names its process), or nothing can be
            written there. In all processes alike.
    """
    with ExitStack() as stack:
        problem: list[str | None] = [None]
        if accelerator.is_main_process:
            try:
                stack.enter_context(_held_alone(output))
            except CheckpointError as error:
                problem = [str(error)]
        if accelerator.num_processes > 1:
            broadcast_object_list(problem)
        if problem[0] is not None:
            raise CheckpointError(problem[0])
        yield


@contextmanager
def _held_alone(output: Path) -> Iterator[None]:
    file = output.resolve() / LOCK
    if file in _held:
        raise CheckpointError(f"this process trains in {output} already")
    try:
        check_folder_writable(output)
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(described(error)) from error
    with file.open("a+", encoding="utf-8") as lock:
        if fcntl is not None:
            _take(lock.fileno(), file, output)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)
            lock.truncate(0)  # not removed: another process may have opened it already


def _take(descriptor: int, file: Path, output: Path) -> None:
    try:
        # Not flock: worker processes would inherit it and hold the folder for a while after a kill.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = file.read_text(encoding="utf-8").strip() or "another process"
        raise CheckpointError(
            f"another training is at work in {output}: {holder}. Wait for it, stop it, or name another folder"
        ) from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see that no other training works there", output, error)
