"""The bar that both training commands show."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class TrainingBar:
    """A bar with losses and the time left; on anything but a terminal a line each validation.

    Args:
        console: where to.
        doing: what comes before the first step.
        steps: of the whole run, None where it is not known yet.
    """

    def __init__(self, console: Console, doing: str, steps: int | None) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(doing, total=steps, terms="")
        if not console.is_terminal:
            console.print(f"{doing} (minutes at the first run)")

    def __enter__(self) -> TrainingBar:
        self._progress.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def show(self, step: int, steps: int, doing: str, terms: str, figures: str | None) -> None:
        """The run stands at ``step``; ``figures`` are a validation's, None where there was none."""
        self._progress.update(
            self._task, completed=step, total=steps, description=doing, terms=terms
        )
        if figures is not None:
            self._console.print(
                f"step {step}/{steps}: {terms}; validation: {figures}", highlight=False
            )

    def warn(self, text: str) -> None:
        """A sentence that stays above the bar."""
        self._console.print(f"warning: {text}", highlight=False)
