"""``blsgan train-segmenter``: the old name of ``blsgan train --preset segmenter``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from blsgan.cli import train

_NEW = ("preset", "tensorboard")
_CONFIG = click.Option(
    ["--config", "config_path"],
    type=click.Path(path_type=Path),
    help="A YAML file; the defaults are those of the shipped weights.",
)


@click.command(
    "train-segmenter",
    params=[*(option for option in train.command.params if option.name not in _NEW), _CONFIG],
    epilog="Example: blsgan train --preset segmenter --data Data -o runs/segmenter",
)
@click.pass_context
def command(context: click.Context, config_path: Path | None, **options: Any) -> None:
    """The old name of `blsgan train --preset segmenter`; the next release has it no more."""
    click.echo(
        "note: train-segmenter is now `blsgan train --preset segmenter`; the next release has the "
        "old name no more",
        err=True,
    )
    preset = None if options["resume"] and config_path is None else str(config_path or "segmenter")
    if config_path is not None:  # such a file does not name its task
        options["changes"] = ("task=segmentation", *options["changes"])
    context.invoke(train.command, preset=preset, tensorboard=False, **options)
