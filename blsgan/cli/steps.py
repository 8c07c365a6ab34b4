"""What a long command is doing, on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console


class Steps:
    """The current step as a status line; a loop inside it as a bar."""

    def __init__(self, console: Console) -> None:
        self._status = console.status("")
        self._console = console

    def __enter__(self) -> Steps:
        self._status.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._status.stop()

    def step(self, text: str) -> None:
        self._status.update(text)

    def track(self, items: Iterable[Any]) -> Iterable[Any]:
        from rich.progress import track

        self._status.stop()
        yield from track(
            list(items),
            "comparing with float32",
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._status.start()
