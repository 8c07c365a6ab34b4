"""What commands say on standard error, how loudly, and how they show that long work goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

import click

LOG_EVERY_S = 30.0
"""Off a terminal a line says this often how far the work is."""

_LOUDNESS = "blsgan.loudness"
Item = TypeVar("Item")


class _Handler(logging.Handler):
    """The package's own messages, on the standard error of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{'note' if record.levelno >= logging.WARNING else 'blsgan'}: {record.getMessage()}")


_HANDLER = _Handler()


def _set_loudness(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    loudness = 1 if parameter.name == "verbose" else -1
    if context.meta.get(_LOUDNESS, loudness) != loudness:
        raise click.UsageError("-q says less and -v says more; leave out one of them.", context)
    context.meta[_LOUDNESS] = loudness
    listen()


def loudness_options() -> list[click.Option]:
    """``-q`` and ``-v``, which every command has."""
    return [
        click.Option(
            [short, f"--{name}"],
            is_flag=True,
            expose_value=False,
            callback=_set_loudness,
            help=help,
        )
        for short, name, help in (
            ("-q", "quiet", "Say only what was asked for, and errors."),
            ("-v", "verbose", "Say what is loaded, and each file that is done."),
        )
    ]


def _loudness() -> int:
    context = click.get_current_context(silent=True)
    return 0 if context is None else int(context.meta.get(_LOUDNESS, 0))


def quiet() -> bool:
    """Whether the user gave ``-q``."""
    return _loudness() < 0


def verbose() -> bool:
    """Whether the user gave ``-v``."""
    return _loudness() > 0


def say(text: str, *, err: bool = True) -> None:
    """A line about the work, which ``-q`` drops; ``err`` False: on standard output."""
    if not quiet():
        click.echo(text, err=err)


def listen() -> None:
    """Let what the package logs be heard: warnings, and with ``-v`` everything."""
    logger = logging.getLogger("blsgan")
    if _HANDLER not in logger.handlers:
        logger.addHandler(_HANDLER)
    logger.setLevel(logging.DEBUG if verbose() else logging.WARNING)


def figures_wanted(wanted: bool | None) -> bool:
    """Whether ``--figures/--no-figures``, or matplotlib where neither was given, says to draw."""
    if wanted is None and find_spec("matplotlib") is None:
        say("no figures: matplotlib is not installed; pip install 'blsgan[figures]'")
        return False
    return wanted is not False


class Progress:
    """How far long work is: bars on a terminal, elsewhere a line every 30 s.

    A context manager; bars may be nested. ``track`` is a :class:`blsgan.progress.Track`. With
    ``-q``, or ``speaks=False``, it shows nothing.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._speaks = speaks and not quiet()
        self._console = Console(stderr=True, quiet=not self._speaks)
        self._on_terminal = self._console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}", markup=False),
            console=self._console,
            disable=not (self._on_terminal and self._speaks),
            transient=True,
        )
        self._step: Any = None
        self._ended = threading.Event()
        self._lines: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._bars.start()
        if self._speaks and not self._on_terminal:
            self._lines = threading.Thread(target=self._write_lines, daemon=True)
            self._lines.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._bars.stop()
        self._ended.set()
        if self._lines is not None:
            self._lines.join()

    def say(self, text: str) -> None:
        """A line that stays, above the bars."""
        if self._on_terminal:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif self._speaks:
            click.echo(text, err=True)

    def step(self, text: str) -> None:
        """What is being done from now on, where nothing can be counted."""
        if self._step is None:
            self._step = self._bars.add_task(text, total=None, more="")
        self._bars.update(self._step, description=text)

    @contextmanager
    def bar(self, label: str, total: int | None) -> Iterator[Bar]:
        """A bar for as long as the context lasts."""
        task = self._bars.add_task(label, total=total, more="")
        try:
            yield Bar(self._bars, task)
        finally:
            self._bars.remove_task(task)

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """``items``, under a bar."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self.bar(label, total) as bar:
            for item in items:
                yield item
                bar.advance()

    def _write_lines(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(LOG_EVERY_S):
            text = "; ".join(_line(task) for task in self._bars.tasks) or "working"
            click.echo(f"{text} ({_duration(time.monotonic() - started)})", err=True)


class Bar:
    """A bar of :class:`Progress`."""

    def __init__(self, bars: Any, task: Any) -> None:
        self._bars, self._task = bars, task

    def advance(self) -> None:
        """One more is done."""
        self._bars.advance(self._task)

    def show(self, label: str, done: int, total: int | None, more: str = "") -> None:
        """Where the work stands; ``more`` is said behind the bar."""
        self._bars.update(self._task, description=label, completed=done, total=total, more=more)


def _line(task: Any) -> str:
    text = str(task.description)
    if task.total is not None:
        text += f": {task.completed:.0f} of {task.total:.0f}"
    if task.time_remaining:
        text += f", {_duration(task.time_remaining)} left"
    return f"{text}, {task.fields['more']}" if task.fields["more"] else text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
