"""Programs of scripts/, run in the process of the test: a process of their own costs ten seconds of imports."""

import contextlib
import io
import runpy
import sys
from types import SimpleNamespace
from unittest import mock


class _Ended:
    """A program that has ended when it is started."""

    def __init__(self, command, stdout, **_):
        said = io.StringIO()
        with (
            mock.patch.object(sys, "argv", command[1:]),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            try:
                runpy.run_path(command[1], run_name="__main__")
                self.status = 0
            except SystemExit as end:
                self.status = end.code
        stdout.write(said.getvalue().encode())

    def wait(self):
        return self.status


HERE = SimpleNamespace(Popen=_Ended)  # in place of the module subprocess in a program that starts others
