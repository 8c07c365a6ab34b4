"""``blsgan run-engine``: an engine, tried where it shall serve."""

from __future__ import annotations

from pathlib import Path

import click

from blsgan.cli import options


@click.command("run-engine", epilog="Example: blsgan run-engine lite.engine --against lite.onnx")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "source",
    type=click.Path(dir_okay=False, path_type=Path),
    help="An .npz with image [B,1,H,W] in [0,1] and masks [B,2,H,W].  [default: phantoms]",
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="How many phantoms.  [default: the engine's best]"
)
@click.option(
    "--repeat", type=click.IntRange(min=1), default=100, show_default=True, help="Timed runs."
)
@click.option(
    "--against",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The model it was built from: compare with it, run by ONNX Runtime on the CPU.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write layers, reconstruction, soft_tissue and share_logits as .npz.",
)
@options.json_flag
@click.pass_context
def command(
    context: click.Context,
    engine: Path,
    source: Path | None,
    batch: int | None,
    repeat: int,
    against: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Run ENGINE, time it and, on request, compare it with the model it was built from.

    Its manifest is compared with this machine first; an engine that cannot run here is refused with
    the reason. To separate radiographs with it: `blsgan separate --weights NAME.engine`. Exit
    status 1 where the comparison fails.
    """
    import json

    import numpy as np

    from blsgan.deploy.trial import read_sample, try_engine
    from blsgan.errors import UsageError
    from blsgan.io.atomic import atomic_path, check_writable_folder

    if source is not None and batch is not None:
        raise UsageError("--batch counts phantoms; leave it out with --input.")
    if output is not None:
        if output.suffix != ".npz":
            raise UsageError(f"{output} does not end in .npz; name the arrays like that.")
        check_writable_folder(output.parent)
    sample = read_sample(source) if source is not None else None
    report, outputs = try_engine(engine, sample, batch=batch, repeat=repeat, against=against)
    if output is not None:
        with atomic_path(output) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **outputs)  # type: ignore[arg-type]
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        latency = report["latency_ms"]
        click.echo(
            f"{engine} on {report['gpu']} ({report['backend']}, {report['precision']}): batch "
            f"{report['batch']} of {report['size'][0]} x {report['size'][1]} px, p50 "
            f"{latency['p50']:.3f} ms, p99 {latency['p99']:.3f} ms, "
            f"{report['joints_per_s']:.0f} joints/s one by one, "
            f"{report['streamed_joints_per_s']:.0f} streamed"
        )
        if against is not None:
            psnr = report["overlap_psnr_db"]
            figure = "no overlap to compare" if psnr is None else f"{psnr:.1f} dB over the overlap"
            click.echo(f"against {against}: {figure}, {'ok' if report['passed'] else 'FAILED'}")
        if output is not None:
            click.echo(f"wrote {output}")
    if not report.get("passed", True):
        context.exit(1)
