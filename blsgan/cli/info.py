"""``blsgan info``: the facts of this installation, to read or to attach to a bug report."""

from __future__ import annotations

from typing import Any

import click

from blsgan.cli import options
from blsgan.cli.doctor import print_checks, print_json
from blsgan.doctor import collect


def _table(title: str, rows: dict[str, Any]) -> None:
    click.secho(title, bold=True)
    for name, value in rows.items():
        if value is None:
            continue
        click.echo(f"  {name:<23} {value}")


@click.command(epilog="Example: blsgan info --json")
@options.json_flag
def command(as_json: bool) -> None:
    """Show versions, compiled kernels, backends and weights.

    Exit status 0 whatever is found; `blsgan doctor` judges.
    """
    report = collect()
    if as_json:
        print_json(report)
        return
    _table("Versions", {**report.versions, "python": report.system["python"]})
    _table("System", {k: v for k, v in report.system.items() if k != "python"})
    _table("Build", {k: v for k, v in report.build.items() if v != ""})
    print_checks(report)
