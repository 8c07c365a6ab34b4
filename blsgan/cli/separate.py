"""``blsgan separate``: radiographs and masks in; layers, a panel and a record for each out."""

from __future__ import annotations

from pathlib import Path

import click

from blsgan.cli import options
from blsgan.cli.batch import run_all
from blsgan.cli.terminal import quiet, say
from blsgan.errors import UsageError
from blsgan.io import results
from blsgan.io.atomic import check_writable_folder
from blsgan.io.listing import Item, describe_passed_over
from blsgan.io.spacing import user_spacing
from blsgan.pipeline.joint import Joint
from blsgan.pipeline.processes import processes_for, separate_all
from blsgan.pipeline.separate import Work
from blsgan.pipeline.worklist import Outcome, work_list
from blsgan.records.separation import Format, SeparationOptions, SeparationRecord
from blsgan.runtimes.device import CPU
from blsgan.runtimes.session import cores


@click.command(epilog="Example: blsgan separate radiographs -o out")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--upper-mask", type=click.Path(path_type=Path), help="Mask of the upper bone.")
@click.option("--lower-mask", type=click.Path(path_type=Path), help="Mask of the lower bone.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the results."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(results.FORMATS),
    default="png",
    show_default=True,
    help="16-bit pictures, or float32 arrays (npz).",
)
@click.option(
    "--panels/--no-panels",
    default=True,
    show_default=True,
    help="Draw NAME_panel.png, which takes more than half of the time.",
)
@options.mask_pattern
@click.option("--overwrite", is_flag=True, help="Separate again what is finished.")
@options.weights()
@click.option(
    "--require-masks", is_flag=True, help="An image without masks is an error: predict none."
)
@click.option(
    "--segmenter",
    help="Name or file of the weights that predict missing masks.  [default: segmenter]",
)
@options.backend()
@options.runs_on
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of the network.  [default: usable cores; 1 in each of several processes]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Processes for many joints; the results are the same.  [default: usable cores; 1 on a "
    "GPU]",
)
@options.bit_depth
@options.invert
@click.option(
    "--pixel-spacing",
    type=float,
    help="Side of a pixel in mm.  [default: from DICOM]",
)
@click.option(
    "--mirrored",
    is_flag=True,
    help="Take the mean of the network's shares and k for the joint and for its mirror image: "
    "0.1 dB closer to the truth, in twice the time.",
)
@click.option(
    "--ray",
    "on_ray",
    is_flag=True,
    help="Work on the processes of a Ray cluster ($RAY_ADDRESS; without it, of this machine).",
)
@click.option(
    "--ray-workers",
    type=click.IntRange(1),
    help="Processes on Ray, of --threads threads.  [default: the cluster's cores]",
)
def command(
    image: Path,
    upper_mask: Path | None,
    lower_mask: Path | None,
    output: Path,
    file_format: Format,
    panels: bool,
    mask_pattern: str,
    overwrite: bool,
    weights: str | None,
    require_masks: bool,
    segmenter: str | None,
    backend: str,
    device: str | None,
    threads: int | None,
    jobs: int | None,
    bit_depth: int | None,
    invert: bool,
    pixel_spacing: float | None,
    mirrored: bool,
    on_ray: bool,
    ray_workers: int | None,
) -> int:
    """Take the overlapping bones of IMAGE apart.

    IMAGE is a radiograph (PNG, JPEG, TIFF, BMP, DICOM), a folder of them, or a list file of the
    public dataset. Writes NAME_upper, NAME_lower, NAME_reconstruction, NAME_residual,
    NAME_panel.png and NAME.json; results that are complete and up to date are skipped. Where an
    image has no masks, they are predicted and written as well, as `blsgan segment` does.
    """
    spacing = None if pixel_spacing is None else (pixel_spacing, pixel_spacing)
    if spacing is not None:
        user_spacing(*spacing)  # a wrong one is one error, not one for each file
    passed_over: list[Path] = []
    items, single = work_list(
        image,
        output,
        masks=(upper_mask, lower_mask),
        pattern=mask_pattern,
        need_masks=require_masks,
        passed_over=passed_over,
    )
    if said := describe_passed_over(image, passed_over):
        say(said)
    check_writable_folder(output)
    options = SeparationOptions(
        format=file_format,
        bit_depth=bit_depth,
        invert=invert,
        pixel_spacing_mm=None if spacing is None else list(spacing),
        mirrored=mirrored,
        panels=panels,
    )
    if ray_workers is not None and not on_ray:
        raise UsageError("--ray-workers was given without --ray; give both.")
    if on_ray:
        if single:
            raise UsageError(f"{image} is one radiograph; --ray is for a folder or a list.")
        from blsgan.pipeline.on_ray import separate_on_ray

        attempts = separate_on_ray(
            items,
            output,
            options,
            overwrite=overwrite,
            weights=weights,
            backend=backend,
            device=device,
            segmenter=segmenter,
            require_masks=require_masks,
            threads=threads or 1,
            workers=ray_workers,
        )
        return run_all(attempts, len(items), output, doing="separating", done="separated")
    work = Work(
        output,
        options,
        overwrite=overwrite,
        weights=weights,
        backend=backend,
        device=device,
        segmenter=segmenter,
        require_masks=require_masks,
        threads=threads if single else threads or 1,
    )
    device_in_use = work.separator.backend.device  # wrong weights are one error, before any work
    if single:
        _report_one(items[0], work(items[0]))
        return 0
    # Processes would share one GPU, each with a copy of all that it needs there.
    most = jobs or (cores() if device_in_use == CPU else 1)
    attempts = separate_all(items, work, processes_for(items, most))
    return run_all(attempts, len(items), output, doing="separating", done="separated")


def _report_one(item: Item, outcome: Outcome[Joint, SeparationRecord]) -> None:
    if quiet():
        return
    record, panel = outcome.record, outcome.files[-2]
    if outcome.renamed:
        click.echo(f"{item.image} became {panel}")
    if outcome.found is None:
        click.echo(f"{panel} and the rest are up to date (--overwrite separates again)")
        return
    overlap, k = record.overlap, record.soft_tissue
    area = "" if overlap.area_mm2 is None else f" ({overlap.area_mm2:.2f} mm²)"
    if k is None:
        click.echo("no overlap: each layer is the image inside its mask")
    else:
        click.echo(
            f"overlap {overlap.area_px} px{area}, soft tissue {k:.3f}, reconstruction MSE "
            f"{record.reconstruction_error.mse:.1e}"
        )
    for note in record.notes:
        if k is not None or "do not overlap" not in note:
            click.echo(f"note: {note}")
    click.echo(f"wrote {panel} and {len(outcome.files) - 1} more files")
