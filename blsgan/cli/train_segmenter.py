"""``blsgan train-segmenter``: the network that predicts masks, from a folder of joints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blsgan.cli.training_bar import TrainingBar
from blsgan.errors import BackendError, UsageError

if TYPE_CHECKING:
    from blsgan.training.segmentation import SegmentationConfig, SegmentationProgress


@click.command("train-segmenter")
@click.option(
    "--data",
    "root",
    required=True,
    type=click.Path(path_type=Path),
    help="The dataset's folder Data, with its list files (LS_K1_all_train, ...).",
)
@click.option(
    "-o",
    "--output",
    "run",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the run: configuration, checkpoints, metrics, weights.",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="A YAML file; the defaults are those of the shipped weights.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key (optimiser.learning_rate=1e-3); repeatable.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Short for --set steps=N.")
@click.option(
    "--init", help="Weights to start from, by name (segmenter) or path; random otherwise."
)
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the resolved configuration and the model's size, train nothing.",
)
def command(
    root: Path,
    run: Path,
    config_path: Path | None,
    changes: tuple[str, ...],
    steps: int | None,
    init: str | None,
    resume: bool,
    device: str,
    dry_run: bool,
) -> None:
    """Train the mask segmenter on the public dataset's layout.

    Validation joints are held out by a fixed hash of the joint's name. A run that was stopped goes
    on with --resume from its last checkpoint. The weights end up in OUTPUT/weights; give that
    folder to `blsgan segment --weights`.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "training needs PyTorch (torch >= 2.11), which is not installed; "
            "pip install 'blsgan[train]'"
        ) from error
    from blsgan.training.segmentation import (
        segmentation_config,
        segmentation_run_config,
        train_segmenter,
    )

    if steps is not None:
        changes = (*changes, f"steps={steps}")
    if resume:
        if config_path is not None or changes or init is not None:
            raise UsageError(
                "--resume goes on with the run's own configuration; leave out "
                "--config, --set, --steps and --init, or start another run"
            )
        config = segmentation_run_config(run)
    else:
        config = segmentation_config(config_path, changes)
    if dry_run:
        _describe(config, device)
        return

    from rich.console import Console

    with TrainingBar(Console(stderr=True), "reading joints", config.steps) as bar:
        card = train_segmenter(
            root,
            run,
            config,
            resume=resume,
            init=init,
            device=device,
            report=lambda progress: _report(bar, progress),
            warn=bar.warn,
        )
    click.echo(f"wrote {card}")


def _describe(config: SegmentationConfig, device: str) -> None:
    from blsgan.models.segmenter import SegmenterNetwork
    from blsgan.training.precision import has_bfloat16, no_bfloat16
    from blsgan.training.run_folder import device_of

    target = device_of(device)
    network = SegmenterNetwork(config.model.widths, config.model.blocks)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    click.echo(config.dump(), nl=False)
    click.echo(f"# {parameters:,} parameters; {config.steps} steps of {config.data.batch} pictures")
    if config.precision == "bfloat16" and not has_bfloat16(target):
        click.echo(f"# note: {no_bfloat16(target)}")


def _report(bar: TrainingBar, progress: SegmentationProgress) -> None:
    figures = None
    if progress.validation is not None:
        figures = ", ".join(
            f"{key.replace('_', ' ')} {value:.4g}" for key, value in progress.validation.items()
        )
    bar.show(progress.step, progress.steps, "training", f"loss {progress.loss:.3f}", figures)
