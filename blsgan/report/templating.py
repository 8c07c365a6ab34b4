"""Pages from the templates of this package: escaped, self-contained, and closed to the network."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from blsgan import __version__


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("blsgan.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


@cache
def _asset(name: str) -> str:
    """A style sheet or script of this package, as it is: nothing is filled into it."""
    loader = _environment().loader
    assert loader is not None, "set above"
    return loader.get_source(_environment(), name)[0].strip()


def _source_hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def render(name: str, **content: Any) -> str:
    """The page ``name``.html with ``name``.css and ``name``.js inside.

    Every value is escaped. The page's policy allows this one script and style sheet, by their
    hashes, and pictures as data: whatever a name or note may hold, nothing else runs or loads.
    """
    style, script = _asset(f"{name}.css"), _asset(f"{name}.js")
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_source_hash(style)}; script-src {_source_hash(script)}"
    )
    return (
        _environment()
        .get_template(f"{name}.html")
        .render(
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            version=__version__,
            **content,
        )
    )
