"""Every architecture by name: one line for each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from blsgan.errors import WeightsError
from blsgan.models.generator import Generator

GENERATORS = {
    "lite": "blsgan.models.lite:LiteGenerator",
    "transunet": "blsgan.models.transunet:TransUNetGenerator",
}
"""Name -> ``module:class``. Each class has ``configuration()``, which rebuilds it."""


def build_generator(
    architecture: str, configuration: Mapping[str, Any] | None = None
) -> Generator:
    """A freshly initialised generator.

    Args:
        architecture: a key of :data:`GENERATORS`.
        configuration: arguments of its class; its defaults where left out.

    Raises:
        WeightsError: an unknown architecture, or a configuration that it does not take.
    """
    if architecture not in GENERATORS:
        raise WeightsError(f"architecture '{architecture}' is unknown; this version of blsgan has "
                           f"{', '.join(GENERATORS)}")
    module, name = GENERATORS[architecture].split(":")
    try:
        generator = getattr(import_module(module), name)(**(configuration or {}))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"architecture '{architecture}' cannot be built from "
                           f"{dict(configuration or {})}: {error}") from error
    assert isinstance(generator, Generator)
    return generator
