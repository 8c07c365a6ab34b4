"""``blsgan demo``: a joint phantom through the real path, measured against its known layers."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from blsgan.cli import options
from blsgan.io.atomic import atomic_path, check_writable_folder
from blsgan.io.listing import Item
from blsgan.io.results import to_uint16
from blsgan.pipeline.joint import Joint
from blsgan.pipeline.separate import separate_item
from blsgan.pipeline.worklist import Outcome
from blsgan.records.separation import SeparationOptions, SeparationRecord
from blsgan.synthesis.phantoms import Phantom, joint_phantom
from blsgan.tasks.separation import Separator

_NAME = "phantom"


@click.command(epilog="Example: blsgan demo -o demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder of the phantom and of the results.",
)
@click.option("--seed", type=click.IntRange(0), default=2, show_default=True, help="Which joint.")
@click.option(
    "--size",
    type=click.IntRange(64, 4096),
    default=256,
    show_default=True,
    help="Side of the picture in pixels.",
)
@options.weights()
@options.backend()
@options.runs_on
def command(
    output: Path,
    seed: int,
    size: int,
    weights: str | None,
    backend: str,
    device: str | None,
) -> None:
    """Separate a joint phantom, whose layers are known, and say how well that went.

    The phantom is written as files and separated exactly as `blsgan separate` would.
    """
    check_writable_folder(output)
    phantom = joint_phantom(seed, size, edges=True)
    item = _write_phantom(phantom, output)
    options = SeparationOptions(pixel_spacing_mm=[phantom.pixel_spacing_mm] * 2)
    separator = Separator.from_pretrained(weights, backend, device=device)
    outcome = separate_item(separator, item, output, options, overwrite=True)
    _report(phantom, outcome, seed)


def _write_phantom(phantom: Phantom, folder: Path) -> Item:
    from PIL import Image

    image, upper, lower = (
        folder / f"{_NAME}{ending}" for ending in (".png", "_mask_upper.png", "_mask_lower.png")
    )
    pictures = {
        image: to_uint16(phantom.image),
        upper: phantom.masks[0].astype(np.uint8) * np.uint8(255),
        lower: phantom.masks[1].astype(np.uint8) * np.uint8(255),
    }
    for path, values in pictures.items():
        with atomic_path(path) as temporary:
            Image.fromarray(values).save(temporary, format="PNG")
    return Item(image, upper, lower, Path(), _NAME)


def _report(phantom: Phantom, outcome: Outcome[Joint, SeparationRecord], seed: int) -> None:
    from blsgan.evaluation.baselines import equal_split, ring_soft_tissue
    from blsgan.evaluation.metrics import psnr_db, region_mse

    separation = outcome.found
    assert separation is not None, "overwrite=True always separates"
    region = separation.overlap
    image, masks = phantom.image, phantom.masks
    ring = ring_soft_tissue(image, masks)
    candidates = {
        "blsgan": separation.layers,
        f"equal split, k = {ring:.2f} (ring)": equal_split(image, masks, ring),
    }
    spacing = phantom.pixel_spacing_mm
    click.echo(
        f"joint phantom, seed {seed}: {int(region.sum())} px overlap "
        f"({region.sum() * spacing**2:.2f} mm²), soft tissue "
        f"{phantom.soft_tissue:.3f}, estimated {np.nanmean(separation.soft_tissue):.3f}"
    )
    click.echo(f"{'PSNR in the overlap, dB':<34}{'upper':>8}{'lower':>8}")
    for name, layers in candidates.items():
        scores = [
            psnr_db(region_mse(layers[bone], phantom.layers[bone], region)) for bone in (0, 1)
        ]
        click.echo(f"{name:<34}{scores[0]:>8.1f}{scores[1]:>8.1f}")
    click.echo(
        f"reconstruction MSE {outcome.record.reconstruction_error.mse:.1e}, separated in "
        f"{outcome.record.times_ms['separate']:.0f} ms"
    )
    click.echo(f"pictures: {outcome.files[-2]} (look at this one first), others beside it")
