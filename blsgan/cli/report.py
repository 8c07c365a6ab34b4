"""``blsgan report``: what a run found, as a page to read."""

from __future__ import annotations

from pathlib import Path

import click

from blsgan.cli.terminal import Progress, say
from blsgan.errors import UsageError


@click.command(epilog="Example: blsgan report out -o report.html")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page; further ones lie beside it.",
)
@click.option(
    "--images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder or file of the radiographs, found by their content; repeatable.  [default: "
    "inputs are shown as far as the bones reach]",
)
@click.option(
    "--per-page",
    type=click.IntRange(1, 500),
    default=24,
    show_default=True,
    help="Radiographs on one page.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Show at most this many radiographs in detail, flagged ones first.  [default: all]",
)
@click.option(
    "--panels/--no-panels",
    default=None,
    help="Include panels and registrations.  [default: up to 100 radiographs]",
)
@click.option(
    "--sdd",
    "sdd_px",
    type=click.FloatRange(0, min_open=True),
    help="Smallest detectable difference of a narrowing in px, from `blsgan jsn study`: smaller "
    "ones are marked.",
)
@click.option("--title", help="Heading of the report.  [default: Bone layers report]")
def command(
    runs: tuple[Path, ...],
    output: Path,
    images: tuple[Path, ...],
    per_page: int,
    limit: int | None,
    panels: bool | None,
    sdd_px: float | None,
    title: str | None,
) -> None:
    """Write the report of RUNS: output folders of `blsgan separate` and `blsgan jsn`.

    One page that needs no network: a summary, then for each joint its narrowing over the visits,
    what is doubtful, the input beside each layer under a slider, the residual and the manifest.
    """
    from blsgan.io.atomic import check_writable_folder
    from blsgan.report.page import TITLE, Layout, write_report

    if title is not None and not title.strip():
        raise UsageError("the title is empty; leave out --title or give one.")
    check_writable_folder(output.parent)
    layout = Layout(per_page, limit, panels, title.strip() if title else TITLE, sdd_px)
    with Progress() as progress:
        written = write_report(runs, output, images, layout, progress.track)
    more = f" and {len(written.pages) - 1} more pages" if len(written.pages) > 1 else ""
    detail = "" if written.detailed == written.joints else f", {written.detailed} in detail"
    rows = "" if written.joints == written.radiographs else f" in {written.joints} rows"
    say(f"{written.radiographs} radiographs{rows}{detail}; wrote {output}{more}", err=False)
