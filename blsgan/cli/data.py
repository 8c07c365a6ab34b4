"""``blsgan data``: verify a dataset, and pack it into one file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blsgan.cli import options
from blsgan.cli.group import Group
from blsgan.cli.terminal import Progress, say
from blsgan.errors import InputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from blsgan.data.verify import Report
    from blsgan.records.dataset import Finding

_SHOWN = 5  # findings of one kind; -o has all


@click.group(cls=Group, epilog="Example: blsgan data verify Data")
def command() -> None:
    """Check a dataset in the public layout, and pack it into one file."""


@command.command("verify", epilog="Example: blsgan data verify Data")
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("old_output", required=False, type=click.Path(path_type=Path), metavar="")
@options.json_flag
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Also write every finding and count into this JSON file.",
)
def verify_command(root: Path, old_output: Path | None, as_json: bool, output: Path | None) -> None:
    """Look for faults in the dataset ROOT before anything is trained on it.

    Every list, every listed file and every pixel is looked at: files that are missing, damaged or
    of another size, masks that are none, empty or exchanged, duplicates, joints on both sides of
    a split, follow-up pairs of unknown images. Exit status 1 where something is wrong.
    """
    from rich.console import Console

    from blsgan.data.verify import verify
    from blsgan.io.atomic import atomic_path, check_writable_folder

    if old_output is not None:  # data verify ROOT --json FILE, as it was in 0.1.0
        root, old_output = (root, old_output) if root.is_dir() else (old_output, root)
        if not as_json or output is not None:
            raise UsageError(f"{old_output} is one dataset too many; give one.")
        say("note: --json FILE is now -o FILE; the next release has the old name no more")
        as_json, output = False, old_output
    if output is not None:
        check_writable_folder(output.parent)
    with Progress() as progress:
        report = verify(root, progress=progress.track)
    text = report.record().text(indent=1)
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    errors, warnings = report.of("error"), report.of("warning")
    if as_json:
        click.echo(text, nl=False)
    else:
        console = Console()
        _print_counts(report, console)
        _print_findings("Warnings", warnings, console)
        _print_findings("Errors", errors, console)
    verdict = f"{_many(len(errors), 'error')}, {_many(len(warnings), 'warning')}"
    if errors:
        raise InputError(
            f"{root}: {verdict}, listed above; the first: {errors[0].where}: {errors[0].text}"
        )
    if not as_json:
        click.echo(f"\n{root}: {verdict}")


@command.command("pack", epilog="Example: blsgan data pack Data -o joints.blsgan")
@click.argument("root", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write."
)
def pack_command(root: Path, output: Path) -> None:
    """Pack the dataset ROOT into one file, which loads without decoding a picture.

    `blsgan evaluate --data FILE` and everything else that takes the folder takes the file. The
    images are the same bit for bit; follow-up pairs (DR_*) are not packed.
    """
    from blsgan.data.dataset import load_root
    from blsgan.data.layout import check_complete
    from blsgan.data.packed import pack
    from blsgan.io.atomic import check_writable_folder

    check_writable_folder(output.parent)
    if os.path.realpath(root) == os.path.realpath(output):
        raise UsageError(f"{output}: is the dataset itself; give another file")
    images = load_root(root)
    check_complete(root, images)
    with Progress() as progress:
        content = pack(progress.track(images, "packing"), output)
    click.echo(
        f"wrote {output}: {len(images)} images, {output.stat().st_size / 2**20:.0f} MiB, "
        f"content {content}"
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _print_counts(report: Report, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    counts = report.counts
    split = counts["split"]
    rows = [
        ("lists", ", ".join(f"{name} ({count})" for name, count in counts["lists"].items())),
        ("images", f"{counts['images']} of {_many(counts['joints'], 'joint')}"),
        (
            "joints by number of visits",
            ", ".join(
                f"{visits}: {joints}" for visits, joints in counts["joints_by_visits"].items()
            ),
        ),
        ("with and without overlap", f"{counts['with_overlap']} and {counts['without_overlap']}"),
        ("sizes in px", ", ".join(f"{size} ({n})" for size, n in counts["sizes_px"].items())),
        ("follow-up pairs", str(counts["follow_up_pairs"])),
        (
            "blsgan's split",
            "; ".join(
                f"{name}: {part['images']} images of {part['joints']} joints"
                for name, part in split.items()
            ),
        ),
        ("patients with joints on both sides", str(counts["patients_with_joints_in_both_splits"])),
        ("files that no list names", str(counts["files_not_listed"])),
    ]
    if not console.is_terminal:  # into a file or another program: nothing wrapped, nothing drawn
        for name, value in rows:
            click.echo(f"{name}: {value}")
        return
    table = Table(title=escape(report.root), title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, escape(value))
    console.print(table)


def _print_findings(title: str, findings: Sequence[Finding], console: Console) -> None:
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    for kind, alike in kinds.items():
        console.print(f"\n{title}: {kind} ({len(alike)})", style="bold", highlight=False)
        for finding in alike[:_SHOWN]:
            console.print(
                f"  {finding.where}: {finding.text}", highlight=False, markup=False, soft_wrap=True
            )
        if len(alike) > _SHOWN:
            console.print(f"  and {len(alike) - _SHOWN} more (-o FILE has all)", highlight=False)
