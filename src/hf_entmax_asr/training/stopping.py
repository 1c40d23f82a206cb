"""Stopping a run from outside, without losing it."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


class StopSignal:
    """Whether Ctrl-C or SIGTERM has come: the first asks to end after this step, with a checkpoint; the second at once.

    Only the main thread can listen; elsewhere no signal is ever received.
    """

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            self.received = True
            signal.signal(number, before[number])
            logger.warning("%s: saving a checkpoint and stopping", signal.Signals(number).name)

        before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
