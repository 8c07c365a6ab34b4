"""``blsgan inspect``: what is inside weights, a model or an engine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from blsgan.cli import options

_SHORT = ("kind", "file", "bytes", "sha256", "layers", "inputs", "outputs", "profile")


@click.command(epilog="Example: blsgan inspect lite.onnx --layers")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="List every layer with its precision.")
@options.json_flag
def command(path: Path, layers: bool, as_json: bool) -> None:
    """Show inputs and outputs, precision per layer and size of FILE.

    FILE is a weights card (.json), weights (.safetensors), a model (.onnx) or an engine (.engine,
    by its manifest: neither a GPU nor TensorRT is needed). Files of other programs are refused.
    """
    from blsgan.deploy.inspection import inspect_file

    facts = inspect_file(path)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.secho(f"{facts['kind']} {facts['file']}", bold=True)
    click.echo(f"  {facts['bytes'] / 1e6:.2f} MB, SHA-256 {facts['sha256']}")
    for name in ("inputs", "outputs", "profile"):
        for port, value in facts.get(name, {}).items():
            click.echo(f"  {name.rstrip('s')} {port}: {_shapes(value)}")
    for name, value in facts.items():
        if name not in _SHORT and value not in (None, {}, []):
            click.echo(f"  {name.replace('_', ' ')}: {_plain(value)}")
    found = facts.get("layers", {})
    if found:
        kinds = Counter(_precision(value) for value in found.values())
        click.echo(
            f"  layers: {len(found)}, "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        )
    if layers:
        for layer, value in found.items():
            shape = f" {value['shape']}" if isinstance(value, dict) else ""
            click.echo(f"    {layer}: {_precision(value)}{shape}")


def _precision(value: Any) -> str:
    return str(value["type"]) if isinstance(value, dict) else str(value)


def _shapes(value: dict[str, Any]) -> str:
    if "type" in value:
        return f"{value['type']} [{', '.join(map(str, value['shape']))}]"
    return ", ".join(f"{name} {value[name]}" for name in ("min", "opt", "max"))


def _plain(value: Any) -> str:
    if isinstance(value, dict):  # the ports are told above, in their own lines
        return ", ".join(
            f"{key} {_plain(item)}"
            for key, item in value.items()
            if item is not None and key != "blsgan.ports"
        )
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)
