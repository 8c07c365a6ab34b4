"""``blsgan doctor``: try everything that may run here and say why something cannot."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import click

from blsgan.cli import options
from blsgan.doctor import Check, Report, collect, for_strangers
from blsgan.io.atomic import atomic_path
from blsgan.runtimes.session import ENGINES


def _line(works: bool, name: str, detail: str, reason: str | None) -> str:
    mark = click.style("ok", fg="green") if works else click.style("no", fg="yellow")
    text = "; ".join(part for part in (detail, reason) if part)
    wrapped = textwrap.wrap(text, 71, break_long_words=False, break_on_hyphens=False) or [""]
    return f"  {mark}  {name:<23}{wrapped[0]}" + "".join(
        f"\n{'':<29}{more}" for more in wrapped[1:]
    )


def _section(title: str, checks: list[Check]) -> None:
    click.secho(title, bold=True)
    for check in checks:
        click.echo(_line(check.works, check.name, check.detail, check.reason))


def _weights(report: Report) -> None:
    click.secho("Weights", bold=True)
    for file in report.weights["files"]:
        verdict = "unchecked" if file["card_sha256"] is None else "as its card says"
        detail = f"SHA-256 {(file['sha256'] or '')[:12]}..., {verdict}" if file["sha256"] else ""
        name = file["path"].rsplit("/", 1)[-1]
        click.echo(_line(file["reason"] is None, name, detail, file["reason"]))
    if not report.weights["files"]:
        click.echo(_line(False, report.weights["name"], "", report.weights["reason"]))
    for note in report.notes:
        click.echo(f"      {note}")


def print_json(report: Report) -> None:
    """All of it as one object, which ``info`` and ``doctor`` share."""
    click.echo(json.dumps(report.as_dict(), indent=2, sort_keys=True))


def print_checks(report: Report) -> None:
    """What was compiled, runs and is whole here, each "no" with its reason."""
    _section("Compiled", report.compiled)
    _section("Backends", report.backends)
    _weights(report)


@click.command(epilog="Example: blsgan doctor")
@options.json_flag
@click.option(
    "--submit",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write FILE, which you may send us: the same without anything that tells whose "
    "machine this is. Nothing is sent.",
)
@click.pass_context
def command(context: click.Context, as_json: bool, submit: Path | None) -> None:
    """Check what can run here, and say why something cannot.

    Separates a small joint with every backend, each in a process of its own. Exit status 0 when
    `blsgan separate` works, 1 when it does not; what is optional and missing changes nothing.
    `blsgan info` shows the same checks and every version, and judges nothing.
    """
    report = collect()
    if submit is not None:
        with atomic_path(submit) as temporary:
            text = json.dumps(for_strangers(report), indent=2, sort_keys=True)
            temporary.write_text(text + "\n", encoding="utf-8")
        click.echo(f"wrote {submit}; look at it before you send it", err=True)
    if as_json:
        print_json(report)
        context.exit(0 if report.can_separate else 1)
    click.echo(f"blsgan {report.versions['blsgan']} in {report.system['package']}")
    click.echo(f"Python {report.system['python']}, {report.system['platform']}")
    print_checks(report)
    working = [check.name for check in report.backends if check.works and check.name not in ENGINES]
    if report.can_separate:
        click.secho(f"blsgan separate works here, on {working[0]}.", fg="green")
        return
    kernels = report.compiled[0]
    why = kernels.reason if not kernels.works else "no backend runs, for the reasons above"
    click.secho(f"blsgan separate does not work here: {why}.", fg="red")
    context.exit(1)
