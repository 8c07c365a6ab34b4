"""What Ctrl-C and SIGTERM do to a command."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from types import FrameType
from typing import Any

_PATIENCE_S = 3.0


class Signals:
    """Makes an exception of a signal, so that the command cleans up after itself.

    ``came`` is the number of the first one. Who presses Ctrl-C twice means it once: the clean-up
    is not interrupted, unless it takes longer than a few seconds.

    Args:
        process_ends: after the command, so that a signal that comes then has nothing to stop.
    """

    def __init__(self, *, process_ends: bool) -> None:
        self.came: int | None = None
        self._at = 0.0
        self._process_ends = process_ends
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        with contextlib.suppress(ValueError):  # not the main thread: its owner decides
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup, a script's background job
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *details: object) -> None:
        for number, before in self._before.items():
            if self._process_ends and self.came is not None:
                signal.signal(number, signal.SIG_IGN)
            elif before is not None:  # None: of a handler that Python did not install
                signal.signal(number, before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.came is not None and time.monotonic() - self._at < _PATIENCE_S:
            return
        self.came, self._at = self.came or number, time.monotonic()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)
