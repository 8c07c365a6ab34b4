"""The command line: one module for each command, imported when it is called, never before.

``main`` is the console script. Errors that blsgan raises on purpose end as one sentence on stderr
and their exit status, bugs as one that asks for a report (``BLSGAN_DEBUG=1``: as a traceback);
Ctrl-C ends with 130, SIGTERM with 143, both after cleaning up.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TypeGuard

import click

from blsgan import __version__
from blsgan.cli.group import Group
from blsgan.cli.signals import Signals
from blsgan.cli.terminal import listen, loudness_options
from blsgan.errors import BlsganError, debugging, unexpected, unusable

COMMANDS = {
    "separate": ("blsgan.cli.separate", "Take the overlapping bones of radiographs apart."),
    "segment": ("blsgan.cli.segment", "Predict the masks of both bones."),
    "hand": ("blsgan.cli.hand", "Take every joint of whole hands apart."),
    "demo": ("blsgan.cli.demo", "Separate a joint phantom and show how well it went."),
    "evaluate": ("blsgan.cli.evaluate", "Measure quality on the public dataset."),
    "compare": ("blsgan.cli.compare", "Set runs, weights and evaluations side by side."),
    "jsn": ("blsgan.cli.jsn", "Measure joint space narrowing between two visits."),
    "report": ("blsgan.cli.report", "Write what a run found as a page to read."),
    "reader-study": ("blsgan.cli.reader_study", "Let readers tell separated bones from real ones."),
    "export-dicom": ("blsgan.cli.export_dicom", "Write results as DICOM objects."),
    "ablate": ("blsgan.cli.ablate", "Train the method without each of its parts, and compare."),
    "data": ("blsgan.cli.data", "Verify a dataset, or pack it into one file."),
    "train": ("blsgan.cli.train", "Train a separator, a mask segmenter or a joint locator."),
    "train-segmenter": (
        "blsgan.cli.train_segmenter",
        "The old name of train --preset segmenter.",
    ),
    "export": ("blsgan.cli.export", "Write weights as one ONNX model, compared with torch."),
    "build-engine": ("blsgan.cli.build_engine", "Build a TensorRT engine that is proven equal."),
    "run-engine": ("blsgan.cli.run_engine", "Run an engine, time it and compare it."),
    "inspect": ("blsgan.cli.inspect", "Show what is inside weights, a model or an engine."),
    "doctor": ("blsgan.cli.doctor", "Check what can run here, and say why something cannot."),
    "info": ("blsgan.cli.info", "Show versions, compiled kernels, backends and weights."),
    "bench": ("blsgan.cli.bench", "Time the kernels and the runtimes on this machine."),
}
"""Command -> (module that holds it as ``command``, help in one line)."""


class LazyGroup(Group):
    """A group that knows its commands by :data:`COMMANDS` and imports only the one that runs."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = import_module(COMMANDS[name][0]).command
        assert isinstance(command, click.Command)
        _add_loudness(command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _add_loudness(command: click.Command) -> None:
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _add_loudness(each)
    elif all(parameter.name != "quiet" for parameter in command.params):
        command.params += loudness_options()


@click.command(
    cls=LazyGroup,
    epilog="Example: blsgan separate joint.png -o out; blsgan COMMAND --help has one for each.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", prog_name="blsgan")
def cli() -> None:
    """Separate overlapping bones in radiographs of finger joints.

    For research; not a medical device.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line on ``args`` (default: the process's) and return its exit status."""
    _print_any_name()
    listen()
    with Signals(process_ends=args is None) as signals:
        try:
            result = cli.main(
                args=list(args) if args is not None else None,
                prog_name="blsgan",
                standalone_mode=False,
            )
            if sys.stdout is not None:
                sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if isinstance(error, click.Abort | KeyboardInterrupt):
                signals.came = signals.came or signal.SIGINT
            if signals.came is not None:  # a library may have made any other error of it
                return _say_interrupted(signals.came)
            if isinstance(error, SystemExit) or (debugging() and _is_bug(error)):
                raise
            return _say(error)


def _say(error: BaseException) -> int:
    """Print the sentence for ``error`` and return the exit status."""
    if isinstance(error, BrokenPipeError) or _of_printing(error):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (so that Python's own flush succeeds)
    if isinstance(error, BrokenPipeError):  # `blsgan ... | head`: the reader has what it wanted
        return 1
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, BlsganError):
        print(f"blsgan: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, MemoryError):
        print("blsgan: out of memory; crop the image to the joint first.", file=sys.stderr)
    elif _of_printing(error):
        from blsgan.io.atomic import output_error

        print(f"blsgan: {output_error('standard output', error)}", file=sys.stderr)
    else:
        print(f"blsgan: {unusable(error) or unexpected(error)}", file=sys.stderr)
    return 1


def _is_bug(error: BaseException) -> bool:
    return not isinstance(error, click.ClickException | BlsganError | MemoryError | BrokenPipeError)


def _say_interrupted(number: int) -> int:
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    with contextlib.suppress(OSError):
        print(f"blsgan: {word}; nothing is left half-written.", file=sys.stderr)
    return 128 + number


def _of_printing(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error of the system came of what was printed: a full disk behind `> file`."""
    if not isinstance(error, OSError) or isinstance(error, BlsganError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__")
    return error.filename is None and module in (__name__, "click.utils", "rich.console")


def _print_any_name() -> None:
    # A file may be called what the terminal's encoding cannot say: \u escapes instead of an error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
