"""Write docs/reference/cli.md from the commands themselves: ``python docs/make_reference.py``.

What stands before the first command and from ``## `blsgan-infer` `` on is written by hand and kept.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from blsgan.cli import COMMANDS, cli

PAGE = Path(__file__).parent / "reference" / "cli.md"
BY_HAND = "## `blsgan-infer`"


def reference(page: str) -> str:
    """The page with everything between its hand-written parts made anew."""
    head, tail = page[: page.index("## ")], page[page.index(BY_HAND) :]
    parts = [head.rstrip()]
    context = click.Context(cli, info_name="blsgan", **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None, name
        parts += _sections(command, name, context, "##")
    return "\n\n".join([*parts, tail])


def _sections(command: click.Command, name: str, parent: click.Context, level: str) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    arguments = " ".join(
        parameter.make_metavar(context)
        for parameter in command.params
        if isinstance(parameter, click.Argument) and parameter.metavar != ""
    )
    title = f"{context.command_path} {arguments}".strip()
    paragraphs = (command.help or "").split("\n\n")
    parts = [f"{level} `{title}`", *(textwrap.fill(" ".join(p.split()), 100) for p in paragraphs)]
    example = (command.epilog or "").removeprefix("Example: ")
    parts.append(f"```sh\n{example}\n```")
    rows = [
        f"| {_names(option, context)} | {_help(option, context)} |"
        for option in command.params
        if isinstance(option, click.Option)
        and not option.hidden
        and option.name not in ("quiet", "verbose")
    ]
    if rows:
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]))
    if isinstance(command, click.Group):
        for each, sub in command.commands.items():
            parts += _sections(sub, each, context, level + "#")
    return parts


def _names(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    if isinstance(option.type, click.Choice):
        value = "|".join(map(str, option.type.choices))
    else:
        value = option.metavar or option.type.name.upper().replace("INTEGER RANGE", "N")
        value = value.replace("FLOAT RANGE", "X").replace("INTEGER", "N").replace("FLOAT", "X")
    return f"{names} {value}".replace("|", "\\|")


def _help(option: click.Option, context: click.Context) -> str:
    text = (option.help or "").replace("  [", " [").replace("|", "\\|")
    if option.show_default and option.default is not None:
        default = option.default
        if option.secondary_opts:
            default = (option.opts if default else option.secondary_opts)[0].lstrip("-")
        text += f" [default: {default}]"
    return f"{text} [required]" if option.required else text


if __name__ == "__main__":
    PAGE.write_text(reference(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
