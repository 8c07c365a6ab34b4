"""``blsgan build-engine``: an engine from an exported model."""

from __future__ import annotations

import re
from pathlib import Path

import click

from blsgan.cli import options
from blsgan.cli.terminal import Progress, say

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_NUMBER = click.IntRange(min=1)


class _Bytes(click.ParamType):
    """``2G``, ``512M`` or a number of bytes."""

    name = "size"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+)([KMG]?)(i?B)?", str(value).strip(), re.IGNORECASE)
        if found is None or int(found[1]) == 0:
            self.fail(f"'{value}' is no size; write 2G, 512M or bytes", parameter, context)
        return int(found[1]) * _SIZES[found[2].upper()]


class _Capability(click.ParamType):
    """``8.7``, or ``ampere+`` for all from 8.0 on."""

    name = "X.Y|ampere+"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        if value != "ampere+" and re.fullmatch(r"\d{1,2}\.\d", str(value)) is None:
            self.fail(f"'{value}' is no compute capability such as 8.7", parameter, context)
        return str(value)


@click.command(
    "build-engine", epilog="Example: blsgan build-engine lite.onnx -o lite.engine --precision fp16"
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The engine, NAME.engine; its manifest NAME.engine.json is written beside it.",
)
@options.precision("Of convolutions and matrix products; the physics stays float32.")
@click.option(
    "--backend",
    type=click.Choice(("tensorrt", "tensorrt-rtx")),
    default="tensorrt",
    show_default=True,
    help="What builds it, and alone can run it.",
)
@click.option(
    "--batch", type=(_NUMBER,) * 3, metavar="MIN OPT MAX", help="Joints.  [default: 1 1 8]"
)
@click.option(
    "--height", type=(_NUMBER,) * 3, metavar="MIN OPT MAX", help="Rows.  [default: 32 96 512]"
)
@click.option(
    "--width", type=(_NUMBER,) * 3, metavar="MIN OPT MAX", help="Columns.  [default: 32 192 512]"
)
@click.option(
    "--compute-capability",
    "capabilities",
    type=_Capability(),
    multiple=True,
    help="Of the GPU it shall run on; repeatable with tensorrt-rtx, of which ampere+ is one engine "
    "for all that it knows from 8.0 on.  [default: of this GPU]",
)
@click.option(
    "--hardware",
    type=click.Choice(("none", "ampere+", "same-capability")),
    default="none",
    show_default=True,
    help="Other GPUs that an engine of tensorrt shall run on; it may be slower.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Newer TensorRTs of the same major version shall run it, too (tensorrt).",
)
@click.option(
    "--workspace",
    type=_Bytes(),
    default="2G",
    show_default=True,
    help="Most GPU memory one layer may use while it runs.",
)
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of measured kernels, read and extended: the next build is quicker.",
)
@options.calibration_data
@click.option(
    "--converter",
    type=click.Choice(("auto", "modelopt", "builtin")),
    default="auto",
    show_default=True,
    help="What writes the precision into the graph; auto: ModelOpt where it is installed.",
)
@click.option("--force", is_flag=True, help="Write an engine that fails its gate, marked as such.")
@click.option("--overwrite", is_flag=True, help="Build again what is finished.")
@click.option("--rebuild", "old_overwrite", is_flag=True, hidden=True)
@click.option("--threads", type=_NUMBER, help="Of the comparison.  [default: usable cores]")
def command(
    model: Path,
    output: Path,
    precision: str,
    backend: str,
    batch: tuple[int, int, int] | None,
    height: tuple[int, int, int] | None,
    width: tuple[int, int, int] | None,
    capabilities: tuple[str, ...],
    hardware: str,
    version_compatible: bool,
    workspace: int,
    timing_cache: Path | None,
    calibration_data: Path | None,
    converter: str,
    force: bool,
    overwrite: bool,
    old_overwrite: bool,
    threads: int | None,
) -> None:
    """Build an engine from MODEL, which `blsgan export` wrote.

    The precision is written into the graph and judged before anything is built: the layers must be
    close to those of float32 and as good against known layers. An engine that is there already,
    from the same model and options, is kept.
    """
    from blsgan.deploy.build import Request, build_engine

    if old_overwrite:
        say("note: --rebuild is now --overwrite; the next release has the old name no more")
    request = Request(
        precision=precision,
        converter=converter,
        backend=backend,
        batch=batch,
        height=height,
        width=width,
        compute_capabilities=capabilities,
        hardware=hardware,
        version_compatible=version_compatible,
        workspace_bytes=workspace,
        timing_cache=timing_cache,
        calibration_data=calibration_data,
        force=force,
        rebuild=overwrite or old_overwrite,
    )
    with Progress() as steps:
        built = build_engine(model, output, request, progress=steps, threads=threads)
    manifest = built.manifest
    state = "is there already" if built.cached else f"built in {manifest.build_seconds:.1f} s"
    where = manifest.gpu or "compute capability " + ", ".join(manifest.compute_capabilities)
    click.echo(
        f"{output} {state}: {manifest.bytes / 1e6:.1f} MB, {manifest.backend} "
        f"{manifest.backend_version}, for {where}"
    )
    click.echo(manifest.parity())
    if not built.cached:
        click.echo(f"wrote {output}, {output}.json")
