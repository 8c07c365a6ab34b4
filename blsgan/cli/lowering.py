"""What the commands that write a lower precision have in common: two options and their progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

_Command = TypeVar("_Command", bound=Callable[..., Any])

calibration_option = click.option(
    "--calibration-data",
    type=click.Path(path_type=Path),
    help="The dataset's folder Data (or its packed file), to calibrate int8 and fp8 on training "
    "joints and judge on validation joints.  [default: phantoms]",
)


def precision_option(help: str) -> Callable[[_Command], _Command]:
    """``--precision``, with what it means for the command."""
    return click.option(
        "--precision",
        type=click.Choice(("fp32", "fp16", "bf16", "int8", "fp8")),
        default="fp32",
        show_default=True,
        help=help,
    )


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
