"""The way through many joints, with a bar, to a summary; for ``separate`` and ``segment``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from blsgan.cli.terminal import Progress, say, verbose
from blsgan.pipeline.worklist import Attempt

_NAMED = 3  # files of a note; -v has all


def run_all(attempts: Iterable[Attempt], count: int, output: Path, *, doing: str, done: str) -> int:
    """Wait for ``count`` attempts, whatever becomes of each; print the summary.

    ``doing`` and ``done`` are the verb's forms ("separating", "separated"). Returns the exit
    status: 1 if anything failed.
    """
    finished = skipped = 0
    notes: dict[str, list[str]] = {}
    renamed: list[Attempt] = []
    failures: list[str] = []
    with Progress() as progress:
        for made in progress.track(attempts, doing, count):
            if made.failure is not None:
                failures.append(made.failure)
                continue
            if made.skipped:
                skipped += 1
            else:
                finished += 1
                for note in dict.fromkeys(made.notes):
                    notes.setdefault(note, []).append(made.image)
            if made.became is not None:
                renamed.append(made)
            if verbose():
                progress.say(f"{made.image}: {'already finished' if made.skipped else done}")
    summary = f"{finished} {done}, {skipped} already finished, {len(failures)} failed"
    say(f"{summary}; results in {output}", err=False)
    for note, files in sorted(notes.items(), key=lambda noted: -len(noted[1])):
        named = files if verbose() or len(files) <= _NAMED + 1 else files[:_NAMED]
        more = f" and {len(files) - len(named)} more" if len(named) < len(files) else ""
        say(f"note ({len(files)} of {finished}): {note}: {', '.join(named)}{more}", err=False)
    for made in renamed:
        say(f"{made.image} became {made.became}", err=False)
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    return 1 if failures else 0
