"""Options that several commands have: one name and one meaning each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from blsgan.errors import UsageError
from blsgan.io.listing import DEFAULT_MASK_PATTERN
from blsgan.runtimes.device import DEVICES
from blsgan.runtimes.session import ENGINES, NAMES

_Command = TypeVar("_Command", bound=Callable[..., Any])
Option = Callable[[_Command], _Command]

threads = click.option(
    "--threads", type=click.IntRange(1), help="Threads.  [default: usable cores]"
)
bit_depth = click.option(
    "--bit-depth",
    type=click.IntRange(1, 16),
    help="Bits of a 16-bit file's values.  [default: from the values]",
)
invert = click.option("--invert", is_flag=True, help="The image shows bone dark.")
mask_pattern = click.option(
    "--mask-pattern",
    default=DEFAULT_MASK_PATTERN,
    show_default=True,
    help="Name of a mask, beside its image, with {stem} and {bone} (upper, lower).",
)
figures = click.option(
    "--figures/--no-figures",
    default=None,
    help="Draw figures into the output folder.  [default: where matplotlib is installed]",
)
json_flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _known_split(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from blsgan.data.splits import check_split

    try:
        check_split(value)
    except UsageError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    return value


split = click.option(
    "--split",
    metavar="train|val|all|K/N",
    callback=_known_split,
    default="val",
    show_default=True,
    help="Joints to judge; nobody trained on those of val. K/N: the K-th of N folds, which a run "
    "with `--set held_out=K/N` has not seen.",
)
calibration_data = click.option(
    "--calibration-data",
    type=click.Path(path_type=Path),
    help="The dataset's folder Data (or its packed file), to calibrate int8 and fp8 on training "
    "joints and judge on validation joints.  [default: phantoms]",
)


device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
runs_on = click.option(
    "--device",
    metavar="|".join(DEVICES),
    help="Where networks run; gpu takes what is there, cuda:1 is the second GPU. Nothing falls "
    "back: what cannot run is an error.  [default: cpu, or an engine that fits]",
)


def data(
    what: str = "The dataset's folder Data (with LS_K1_all_train, ...), or its packed file.",
    *,
    required: bool = True,
) -> Callable[[_Command], _Command]:
    """``--data``, which the command gets as ``root``."""
    return click.option(
        "--data", "root", required=required, type=click.Path(path_type=Path), help=what
    )


def weights(default: str = "lite") -> Callable[[_Command], _Command]:
    """``--weights``; ``default`` is the name of those that ship."""
    return click.option("--weights", help=f"Name or file of the weights.  [default: {default}]")


def backend(*, engines: bool = True) -> Callable[[_Command], _Command]:
    """``--backend``, with or without those that run engines."""
    names = [name for name in ("auto", *NAMES) if engines or name not in ENGINES]
    return click.option(
        "--backend", type=click.Choice(names), default="auto", show_default=True, help="Runtime."
    )


def seed(of: str) -> Callable[[_Command], _Command]:
    """``--seed``, 0 by default; ``of`` says what is drawn by it."""
    return click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help=f"Of {of}."
    )


def precision(help: str) -> Callable[[_Command], _Command]:
    """``--precision``, with what it means for the command."""
    return click.option(
        "--precision",
        type=click.Choice(("fp32", "fp16", "bf16", "int8", "fp8")),
        default="fp32",
        show_default=True,
        help=help,
    )


def several(
    option: str,
    variable: str,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    default: str = "all",
    type: click.ParamType | None = None,
) -> Callable[[_Command], _Command]:
    """An option of which one can give several: by repeating it, or separated by commas.

    The command gets a tuple, empty where it was not given. ``default`` is what the help says then.
    """
    of = click.Choice(choices) if choices is not None else type or click.STRING

    def parse(context: click.Context, parameter: click.Parameter, given: Sequence[str]) -> Any:
        texts = [text.strip() for value in given for text in value.split(",")]
        return tuple(dict.fromkeys(of.convert(text, parameter, context) for text in texts))

    return click.option(
        option,
        variable,
        multiple=True,
        callback=parse,
        metavar="|".join(choices) if choices else getattr(of, "name", "text").upper().split()[0],
        help=f"{help} Several: separated by commas, or repeated.  [default: {default}]",
    )
