"""Errors in one line, for whoever runs a program of scripts/."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import ParamSpec

from hf_entmax_asr.kernels.modes import current_mode

Arguments = ParamSpec("Arguments")

TRACEBACK = "HF_ENTMAX_ASR_TRACEBACK"  # set to 1: errors keep their traceback
INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended
_LONGEST = 2000
# Errors that say something about the input or the machine; the others are mistakes in the program.
_SPEAKING = (OSError, ValueError, RuntimeError, ImportError, MemoryError, subprocess.SubprocessError)


def in_one_line(error: BaseException) -> str:
    """What an error says, its line breaks as spaces; of one that says nothing its type."""
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__


def described(error: BaseException) -> str:
    """What an error says, with the file that it speaks of."""
    if isinstance(error, OSError) and error.strerror is not None:
        names = [os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
        return f"{', '.join(names)}: {error.strerror}" if names else error.strerror
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f': {error}' if str(error) else ''}"
    return str(error)[:_LONGEST] or type(error).__name__


def reports_errors(program: str) -> Callable[[Callable[Arguments, int]], Callable[Arguments, int]]:
    """Decorator of the main function of `program`: an error becomes a message and the exit status 1.

    So do all errors that say something about the input or the machine; what only a mistake in the program raises
    (TypeError, AttributeError, KeyError) keeps its traceback.
    """

    def decorate(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
        @functools.wraps(main)
        def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> int:
            try:
                current_mode()  # an environment variable that names none is found before any work
                return main(*arguments, **options)
            except BrokenPipeError:  # whoever read the output has gone, as `head` does
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            except KeyboardInterrupt:
                print(f"{program}: interrupted", file=sys.stderr)
                return INTERRUPTED
            except _SPEAKING as error:
                if os.environ.get(TRACEBACK) == "1":
                    raise
                print(f"{program}: {described(error)}", file=sys.stderr)
                return 1

        return run

    return decorate
