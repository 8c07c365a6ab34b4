"""Pages from the templates of this package: escaped, self-contained, and closed to the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
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


def _source_hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def render(template: str, assets: Sequence[str], **content: Any) -> str:
    """The page of a template with its style sheets and scripts inside, in the order of ``assets``.

    Every value is escaped. The page's policy allows this one script and style sheet, by their
    hashes, and pictures as data: whatever a name or note may hold, nothing else runs or loads.
    """
    style, script = _joined(assets, ".css"), _joined(assets, ".js")
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_source_hash(style)}; script-src {_source_hash(script)}"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            version=__version__,
            **content,
        )
    )


def _joined(assets: Sequence[str], ending: str) -> str:
    """As they are: nothing is filled into them."""
    loader = _environment().loader
    assert loader is not None, "set above"
    return "\n".join(
        loader.get_source(_environment(), name)[0].strip()
        for name in assets
        if name.endswith(ending)
    )
