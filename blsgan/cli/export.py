"""``blsgan export``: weights as one ONNX model of the whole separation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blsgan.cli import options
from blsgan.cli.terminal import Progress
from blsgan.errors import UsageError

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


@click.command(epilog="Example: blsgan export lite -o lite.onnx")
@click.argument("weights", default="lite", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The model, NAME.onnx; its report NAME.parity.json is written beside it.",
)
@click.option(
    "--triton",
    "repository",
    metavar="REPO",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also, or instead, put the model into this repository of NVIDIA Triton.",
)
@click.option("--triton-name", help="What Triton's clients ask for.  [default: the model's name]")
@click.option(
    "--triton-batch",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Requests that Triton puts into one batch, at most.",
)
@click.option(
    "--triton-delay",
    type=click.IntRange(0),
    default=2000,
    show_default=True,
    metavar="US",
    help="Microseconds that a request waits for others.",
)
@click.option(
    "--triton-radiographs",
    is_flag=True,
    help="Also serve whole radiographs, as NAME-radiograph; Triton's Python needs blsgan.",
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
@options.precision(
    "Of convolutions and matrix products. int8 is for processors, by OpenVINO; engines take the "
    "fp32 model."
)
@options.calibration_data
@click.option(
    "--force", is_flag=True, help="Write a precision that fails its gate, marked in the report."
)
def command(
    weights: str,
    output: Path | None,
    repository: Path | None,
    triton_name: str | None,
    triton_batch: int,
    triton_delay: int,
    triton_radiographs: bool,
    opset: int,
    batch: int | None,
    size: tuple[int, int] | None,
    precision: str,
    calibration_data: Path | None,
    force: bool,
) -> None:
    """Write WEIGHTS (a name or a file; default: lite) as one ONNX model of the whole separation.

    Image and masks go in; layers, reconstruction, k and the share logits come out. The model is
    checked, run by ONNX Runtime and compared with torch on noise and on phantoms; only if they
    agree is it written. A lower --precision must then be close to float32 and as good against
    known layers.

    With --triton alone, a WEIGHTS that is a model already (.engine, or .onnx without .safetensors
    beside it) goes into the repository as it is.
    """
    from blsgan.deploy.export import export

    if output is None and repository is None:
        raise UsageError("nothing is to be written; give -o NAME.onnx, --triton REPO, or both.")

    def serve(model: Path) -> None:
        if repository is not None:
            from blsgan.deploy.triton import write_repository

            files = write_repository(
                model,
                repository,
                name=triton_name,
                max_batch=triton_batch,
                max_delay_us=triton_delay,
                radiographs=triton_radiographs,
            )
            click.echo(f"wrote {', '.join(map(str, files))}")

    if output is None and _is_model(Path(weights)):
        if precision != "fp32":
            raise UsageError(
                f"{weights} is a model already and goes into the repository as it is; give weights "
                f"for --precision {precision}."
            )
        serve(Path(weights))
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, f"{Path(weights).stem}.onnx") if output is None else output
        with Progress() as steps:
            steps.step(f"exporting {weights} and comparing it with torch")
            done = export(
                weights,
                target,
                opset=opset,
                batch=batch,
                size=size,
                precision=precision,
                calibration_data=calibration_data,
                force=force,
                progress=steps,
            )
        _print(done, kept=output is not None)
        serve(target)


def _is_model(path: Path) -> bool:
    """Whether the file is what ``export`` or ``build-engine`` writes, and no weights."""
    if path.suffix == ".onnx":
        from blsgan.tasks.task import find_weights

        return path.is_file() and find_weights(path).safetensors is None
    return path.suffix == ".engine"


def _print(done: Exported, *, kept: bool) -> None:
    from blsgan.runtimes.manifest import gate_line

    cases = done.report.cases
    worst = {
        name: max(case["outputs"][name]["max_abs_error"] for case in cases)
        for name in cases[0]["outputs"]
    }
    batches = sorted({case["batch"] for case in cases})
    name = done.model if kept else done.model.name
    click.echo(
        f"{name}: {done.model.stat().st_size / 1e6:.1f} MB, opset "
        f"{done.report.onnx['opset']}, SHA-256 {done.report.onnx['sha256'][:12]}..."
    )
    click.echo(
        "largest difference from torch on noise and phantoms, batches of "
        f"{', '.join(map(str, batches))}: "
        + ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    )
    if (lowered := done.report.lowered) is not None:
        line = gate_line(lowered["precision"], lowered["gate"], forced=lowered["forced"])
        click.echo(f"{line}, on {lowered['gate']['joints']} {lowered['gate']['data']}")
    if kept:
        click.echo(f"wrote {done.model}, {done.report_path}")
