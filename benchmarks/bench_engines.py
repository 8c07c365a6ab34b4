"""Engines of every precision: size, build time, and what the gate says of each.

    python benchmarks/bench_engines.py -o benchmarks/results/engines.csv --data Data

Builds for each compute capability that TensorRT-RTX can build for without a GPU, or by the TensorRT
of this device. Nothing is executed on a GPU. A precision that fails its gate, or that a capability
does not have, gets a row that says so.
"""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

import click

from blsgan import __version__
from blsgan.deploy.build import Request, build_engine
from blsgan.deploy.export import export
from blsgan.deploy.precision import PRECISIONS
from blsgan.errors import BlsganError
from blsgan.io.atomic import atomic_path
from blsgan.machine import commit_of, processor
from blsgan.runtimes.libraries import load

COLUMNS = (
    "backend", "backend_version", "compute_capability", "precision", "engine_mb", "onnx_mb",
    "build_s", "psnr_db", "worst_psnr_db", "quality_drop_db", "judged_on", "passed", "note",
    "converter", "weights", "weights_sha256", "cpu", "load_average", "blsgan", "commit",
)  # fmt: skip


@click.command()
@click.option("--weights", default="lite", show_default=True)
@click.option(
    "--backend",
    type=click.Choice(("tensorrt", "tensorrt-rtx")),
    default="tensorrt-rtx",
    show_default=True,
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    default=("7.5", "8.6", "8.9", "12.0"),
    show_default=True,
    help="Repeatable; with tensorrt only that of this GPU.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    default=PRECISIONS,
    show_default=True,
)
@click.option(
    "--data",
    "root",
    type=click.Path(path_type=Path),
    help="The public dataset, to calibrate and judge on; phantoms otherwise.",
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="CSV file.")
def main(
    weights: str,
    backend: str,
    capabilities: tuple[str, ...],
    precisions: tuple[str, ...],
    root: Path | None,
    threads: int,
    output: Path | None,
) -> None:
    """Build an engine for every precision and compute capability."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exported = export(weights, folder / "model.onnx")
        common = {
            "backend": backend,
            "weights": exported.report["weights"]["name"],
            "weights_sha256": exported.report["weights"]["sha256"][:12],
            "cpu": processor(),
            "onnx_mb": f"{exported.model.stat().st_size / 1e6:.2f}",
            "load_average": f"{os.getloadavg()[0]:.1f}",
            "blsgan": __version__,
            "commit": commit_of(),
            "backend_version": load(backend).version,
        }
        for precision in precisions:
            for capability in capabilities:
                request = Request(
                    precision,
                    backend=backend,
                    compute_capabilities=(capability,),
                    calibration_data=root,
                    force=True,
                )
                row = {**common, "precision": precision, "compute_capability": capability}
                engine = folder / f"{precision}-{capability}.engine"
                try:
                    built = build_engine(exported.model, engine, request, threads=threads)
                except BlsganError as error:
                    rows.append({**row, "note": str(error)})
                else:
                    manifest = built.manifest
                    rows.append({
                        **row,
                        "engine_mb": f"{manifest.bytes / 1e6:.2f}",
                        "build_s": f"{manifest.build_seconds:.1f}",
                        "psnr_db": _db(manifest.gate["psnr_db"]),
                        "worst_psnr_db": _db(manifest.gate["worst_psnr_db"]),
                        "quality_drop_db": _db(manifest.gate["drop_db"]),
                        "judged_on": manifest.gate["data"] or "",
                        "passed": "no" if manifest.forced else "yes",
                        "converter": manifest.converter,
                    })  # fmt: skip
                _print(rows[-1])
    if output is not None:
        with atomic_path(output) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        click.echo(f"wrote {output}")


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _print(row: dict[str, str]) -> None:
    figures = row.get("note") or (
        f"{row['engine_mb']} MB in {row['build_s']} s, {row['psnr_db'] or '-'} dB against float32, "
        f"lost {row['quality_drop_db'] or '-'} dB, gate passed: {row['passed']}"
    )
    click.echo(f"{row['precision']:5} {row['compute_capability']:5} {figures}")


if __name__ == "__main__":
    main()
