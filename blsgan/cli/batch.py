"""The way through many joints, with a bar, to a summary; for ``separate`` and ``segment``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from blsgan.pipeline.worklist import Attempt


def run_all(attempts: Iterable[Attempt], count: int, output: Path, *, doing: str, done: str) -> int:
    """Wait for ``count`` attempts, whatever becomes of each; print the summary.

    ``doing`` and ``done`` are the verb's forms ("separating", "separated"). Returns the exit
    status: 1 if anything failed.
    """
    finished = skipped = 0
    notes: Counter[str] = Counter()
    renamed: list[Attempt] = []
    failures: list[str] = []
    with _progress(attempts, count, doing) as steps:
        for made in steps:
            if made.failure is not None:
                failures.append(made.failure)
                continue
            if made.skipped:
                skipped += 1
            else:
                finished += 1
                notes.update(set(made.notes))
            if made.became is not None:
                renamed.append(made)
    click.echo(
        f"{finished} {done}, {skipped} already finished, {len(failures)} failed; results in "
        f"{output}"
    )
    for note, number in notes.most_common():
        click.echo(f"note ({number} of {finished}): {note}")
    for made in renamed:
        click.echo(f"{made.image} became {made.became}")
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    return 1 if failures else 0


@contextmanager
def _progress(attempts: Iterable[Attempt], count: int, doing: str) -> Iterator[Iterable[Attempt]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress.track(attempts, total=count)
