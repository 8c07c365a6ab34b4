"""``blsgan train``: a network from a folder of joints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blsgan.cli import options
from blsgan.cli.terminal import Progress, say
from blsgan.errors import BackendError, BlsganError, UsageError

if TYPE_CHECKING:
    from blsgan.cli.terminal import Bar
    from blsgan.training.config import RunConfig
    from blsgan.training.run import StepReport


@click.command("train", epilog="Example: blsgan train --data Data -o runs/mine --steps 2000")
@options.data(
    "The dataset's folder Data (with LS_K1_all_train, ...), its packed file, or one of hands."
)
@click.option(
    "-o",
    "--output",
    "run",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the run: configuration, checkpoints, metrics, weights.",
)
@click.option("--preset", help="A shipped preset or a YAML file.  [default: lite]")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the preset (stages.0.steps=500); repeatable.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Short for --set steps=N; a preset with stages has stages.0.steps instead.",
)
@click.option(
    "--init",
    help="Weights to start from, by name (lite, segmenter, locator) or path; random otherwise.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder.")
@options.device
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write scalars and panels into OUTPUT/tensorboard (needs blsgan[tensorboard]).",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the resolved configuration, the networks' sizes and what a step costs "
    "here; train nothing.",
)
def command(
    root: Path,
    run: Path,
    preset: str | None,
    changes: tuple[str, ...],
    steps: int | None,
    init: str | None,
    resume: bool,
    device: str,
    tensorboard: bool,
    dry_run: bool,
) -> None:
    """Train a separator or, with --preset segmenter, a mask segmenter on the dataset's layout.

    With --preset locator a joint locator, on a folder of whole hands with landmarks.csv.

    Validation joints are held out by a fixed hash of the joint's name. A run that was stopped, by
    Ctrl-C, a kill or a power cut, goes on with --resume from its last checkpoint. The weights end
    up in OUTPUT/weights; give that folder to `blsgan separate --weights` (or `blsgan segment`).

    Several devices: torchrun --nproc-per-node=2 -m blsgan train ...; the batch is shared among the
    processes, and the losses are those of one process.
    """
    from blsgan.data.dataset import load_root
    from blsgan.data.hands import TABLE, read_hands

    # torchrun starts this command several times: the first process speaks for all.
    first = os.environ.get("RANK", "0") == "0"
    # What is no dataset is refused before torch takes its seconds.
    if first and not dry_run:
        (read_hands if (root / TABLE).is_file() else load_root)(root)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "training needs PyTorch (torch >= 2.11), which is not installed; "
            "pip install 'blsgan[train]'"
        ) from error
    from blsgan.training.config import load_config
    from blsgan.training.run import run_config, train

    if steps is not None:
        changes = (*changes, f"steps={steps}")
    if resume:
        if preset is not None or changes or init is not None:
            raise UsageError(
                "--resume goes on with the run's own configuration; leave out "
                "--preset, --set, --steps and --init, or start another run"
            )
        config = run_config(run)
    else:
        config = load_config(preset or "lite", changes)
    if dry_run:
        _describe(config, root, device)
        return

    try:
        with Progress(speaks=first) as progress, progress.bar("reading joints", None) as bar:
            card = train(
                root,
                run,
                config,
                resume=resume,
                init=init,
                device=device,
                tensorboard=tensorboard,
                report=lambda done: _report(progress, bar, done),
                warn=lambda text: progress.say(f"warning: {text}"),
                track=progress.track,
            )
    except BlsganError as error:
        if first:
            raise
        # The first process says what all meet; this one may be the only one that met it.
        click.echo(f"process {os.environ['RANK']}: {error}", err=True)
        raise SystemExit(error.exit_code) from error
    if first:
        say(f"wrote {card}", err=False)


def _describe(config: RunConfig, root: Path, device: str) -> None:
    from blsgan.training.estimate import dry_run

    lines = list(dry_run(config, root, device))
    click.echo(config.dump(), nl=False)
    for line in lines:
        click.echo(f"# {line}")


def _report(progress: Progress, bar: Bar, done: StepReport) -> None:
    terms = ", ".join(_shown(name, value) for name, value in done.terms.items())
    bar.show(done.stage, done.step, done.steps, terms)
    if done.validation is not None:
        figures = ", ".join(
            f"{key.removesuffix('_psnr_db').replace('_', ' ')} {value:.4g}"
            + (" dB" if key.endswith("_db") else "")
            for key, value in done.validation.items()
        )
        progress.say(f"step {done.step}/{done.steps}: {terms}; validation: {figures}")


def _shown(name: str, value: float) -> str:
    """A term as the bar shows it; errors in dB turn round to PSNRs."""
    if name.endswith("_db"):
        return f"{name.removesuffix('_db')} {-value:.2f} dB"
    return f"{name.replace('_', ' ')} {value:.3g}"
