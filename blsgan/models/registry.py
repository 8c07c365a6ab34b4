"""Every architecture by name: one line for each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from blsgan.errors import WeightsError
from blsgan.models.generator import Generator

GENERATORS = {
    "lite": "blsgan.models.lite:LiteGenerator",
    "transunet": "blsgan.models.transunet:TransUNetGenerator",
}
"""Name -> ``module:class``. Each class has ``configuration()``, which rebuilds it."""

MAX_SIZE = 4096
"""Largest number of channels, blocks and so on in a configuration, which a file may bring."""

MAX_PARAMETERS = 10**9
"""Largest network that is built: 4 GB of weights."""

_MAX_LENGTH = 16


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
    configuration = {} if configuration is None else configuration
    if not isinstance(configuration, Mapping) or not _is_moderate(configuration):
        raise WeightsError(f"architecture '{architecture}' cannot be built: its configuration is "
                           f"not a set of whole numbers from 0 to {MAX_SIZE}")
    if architecture not in GENERATORS:
        raise WeightsError(f"architecture '{architecture}' is unknown; this version of blsgan has "
                           f"{', '.join(GENERATORS)}")
    module, name = GENERATORS[architecture].split(":")
    network = getattr(import_module(module), name)
    try:
        with torch.device("meta"):  # takes no memory, draws no random number
            size = sum(parameter.numel() for parameter in network(**configuration).parameters())
        if size > MAX_PARAMETERS:
            raise ValueError(f"it would have {size} parameters, more than {MAX_PARAMETERS}")
        generator = network(**configuration)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise WeightsError(f"architecture '{architecture}' cannot be built from "
                           f"{dict(configuration)}: {error}") from error
    assert isinstance(generator, Generator)
    return generator


def _is_moderate(configuration: Mapping[str, Any]) -> bool:
    """Whether all values are whole numbers up to :data:`MAX_SIZE`, or short lists of such."""
    numbers: list[Any] = []
    for value in configuration.values():
        several = isinstance(value, (list, tuple)) and len(value) <= _MAX_LENGTH
        numbers += value if several else [value]
    return all(type(number) is int and 0 <= number <= MAX_SIZE for number in numbers)
