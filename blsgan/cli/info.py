"""``blsgan info``: the facts of this installation, to read or to attach to a bug report."""

from __future__ import annotations

import json
from typing import Any

import click

from blsgan.doctor import Check, collect


def _table(title: str, rows: dict[str, Any]) -> None:
    click.secho(title, bold=True)
    for name, value in rows.items():
        if value is None:
            continue
        click.echo(f"  {name:<23} {value}")


def _outcomes(checks: list[Check]) -> dict[str, str]:
    return {
        check.name: check.detail or "works" if check.works else f"no: {check.reason}"
        for check in checks
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Show versions, compiled kernels, backends and weights.

    Exit status 0 whatever is found; `blsgan doctor` judges.
    """
    report = collect()
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, sort_keys=True))
        return
    _table("Versions", {**report.versions, "python": report.system["python"]})
    _table("System", {k: v for k, v in report.system.items() if k != "python"})
    _table("Build", {k: v for k, v in report.build.items() if v != ""})
    _table("Compiled", _outcomes(report.compiled))
    _table("Backends", _outcomes(report.backends))
    _table(
        "Weights",
        {
            file["path"]: file["reason"] or f"SHA-256 {file['sha256']}"
            for file in report.weights["files"]
        }
        or {report.weights["name"]: report.weights["reason"]},
    )
