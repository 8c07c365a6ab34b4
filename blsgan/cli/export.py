"""``blsgan export``: weights as one ONNX model of the whole separation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from blsgan.deploy.export import Exported


class _Batch(click.ParamType):
    """``dynamic`` (None) or a whole number from 1 on."""

    name = "dynamic|N"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> int | None:
        if value == "dynamic":
            return None
        try:
            batch = int(str(value))
        except ValueError:
            batch = 0
        if batch < 1:
            self.fail(f"'{value}' is neither dynamic nor a number from 1 on", parameter, context)
        return batch


@click.command()
@click.argument("weights", default="lite", required=False)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The model, NAME.onnx; its report NAME.parity.json is written beside it.",
)
@click.option(
    "--opset",
    type=click.IntRange(18, 22),
    default=20,
    show_default=True,
    help="Of the ONNX standard.",
)
@click.option(
    "--batch",
    type=_Batch(),
    default="dynamic",
    show_default=True,
    help="Joints in a batch.",
)
@click.option(
    "--size",
    type=(click.IntRange(min=1), click.IntRange(min=1)),
    metavar="H W",
    help="Height and width in pixels.  [default: dynamic]",
)
def command(
    weights: str, output: Path, opset: int, batch: int | None, size: tuple[int, int] | None
) -> None:
    """Write WEIGHTS (a name or a file; default: lite) as one ONNX model of the whole separation.

    Image and masks go in; layers, reconstruction, k and the share logits come out. The model is
    checked, run by ONNX Runtime and compared with torch on noise and on phantoms; only if they
    agree is it written.
    """
    from rich.console import Console

    from blsgan.deploy.export import export

    with Console(stderr=True).status(f"exporting {weights} and comparing it with torch"):
        done = export(weights, output, opset=opset, batch=batch, size=size)
    _print(done)


def _print(done: Exported) -> None:
    cases = done.report["cases"]
    worst = {
        name: max(case["outputs"][name]["max_abs_error"] for case in cases)
        for name in cases[0]["outputs"]
    }
    batches = sorted({case["batch"] for case in cases})
    click.echo(
        f"{done.model}: {done.model.stat().st_size / 1e6:.1f} MB, opset "
        f"{done.report['onnx']['opset']}, SHA-256 {done.report['onnx']['sha256'][:12]}..."
    )
    click.echo(
        "largest difference from torch on noise and phantoms, batches of "
        f"{', '.join(map(str, batches))}: "
        + ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    )
    click.echo(f"wrote {done.model}, {done.report_path}")
