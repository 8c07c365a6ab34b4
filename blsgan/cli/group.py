"""A group of commands that knows what a misspelt one was meant to be."""

from __future__ import annotations

import difflib

import click


class Group(click.Group):
    """A group; click itself suggests commands from 8.4 on, and none of a lazy group."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-"):
            names = self.list_commands(context)
            if args[0] not in names:
                near = self.meant(args[0], names)
                context.fail(
                    f"there is no command {args[0]}; "
                    + (
                        f"did you mean {near}?"
                        if near
                        else f"{context.command_path} --help lists them."
                    )
                )
        return super().resolve_command(context, args)

    @staticmethod
    def meant(name: str, names: list[str]) -> str | None:
        """The one of ``names`` that is like ``name``."""
        return next(iter(difflib.get_close_matches(name, names, n=1)), None)
