"""Every architecture by name: one line for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from blsgan.errors import BackendError, WeightsError
from blsgan.models.generator import Generator

GENERATORS = {
    "lite": "blsgan.models.lite:LiteGenerator",
    "transunet": "blsgan.models.transunet:TransUNetGenerator",
}
"""Name -> ``module:class``. Each class has ``configuration()``, which rebuilds it."""

BACKBONES = {
    "unet": "blsgan.models.unet:UNet",
    "unetpp": "blsgan.models.backbones:unet_plus_plus",
    "resunet": "blsgan.models.backbones:residual",
    "denseunet": "blsgan.models.backbones:dense",
    "swin": "blsgan.models.backbones:swin",
}
"""Name -> ``module:function`` of segmentation networks that ``BackboneGenerator`` makes generators
of; all but ``unet`` are MONAI's."""

BOUNDED = {"swin"}
"""Backbones that limit their own size: they cannot be built without memory to be measured."""

MAX_SIZE = 4096
"""Largest number of channels, blocks and so on in a configuration, which a file may bring."""

MAX_PARAMETERS = 10**9
"""Largest network that is built: 4 GB of weights."""

_MAX_LENGTH = 16


def build_generator(architecture: str, configuration: Mapping[str, Any] | None = None) -> Generator:
    """A freshly initialised generator.

    Args:
        architecture: a key of :data:`GENERATORS` or :data:`BACKBONES`.
        configuration: arguments of its class; its defaults where left out. All take ``layers``
            and ``head``, all but ``lite`` ``soft_tissue``
            (:class:`~blsgan.models.generator.Generator`).

    Raises:
        WeightsError: an unknown architecture, or a configuration that it does not take.
        BackendError: it needs MONAI, which is not installed.
    """
    configuration = {} if configuration is None else configuration
    if not isinstance(configuration, Mapping) or not _is_moderate(configuration):
        raise WeightsError(
            f"architecture '{architecture}' cannot be built: its configuration is "
            f"not a set of words, switches and numbers from 0 to {MAX_SIZE}"
        )
    network = _factory(architecture)
    known = _options(architecture)
    if unknown := [key for key in configuration if key not in known]:
        raise WeightsError(
            f"architecture '{architecture}' has no option '{unknown[0]}'; it takes "
            f"{', '.join(known)}"
        )
    for key, value in configuration.items():
        if isinstance(value, bool) and not isinstance(known[key], bool):
            raise WeightsError(
                f"architecture '{architecture}' cannot be built: its option "
                f"'{key}' is {value} and no switch; give a number"
            )
    try:
        _check_size(architecture, network, configuration)
        generator = network(**configuration)
    except BackendError:
        raise
    except (
        TypeError,
        ValueError,
        LookupError,
        RuntimeError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise WeightsError(
            f"architecture '{architecture}' cannot be built from {dict(configuration)}: {error}"
        ) from error
    assert isinstance(generator, Generator)
    return generator


def architectures() -> list[str]:
    """The names that :func:`build_generator` knows."""
    return [*GENERATORS, *BACKBONES]


def _found(architecture: str) -> Callable[..., nn.Module]:
    if architecture not in architectures():
        raise WeightsError(
            f"architecture '{architecture}' is unknown; this version of blsgan has "
            f"{', '.join(architectures())}"
        )
    module, name = {**GENERATORS, **BACKBONES}[architecture].split(":")
    found: Callable[..., nn.Module] = getattr(import_module(module), name)
    return found


def _options(architecture: str) -> dict[str, Any]:
    """The keys of a configuration that the architecture takes, with their defaults."""
    own = {key: p.default for key, p in inspect.signature(_found(architecture)).parameters.items()}
    if architecture in GENERATORS:
        return own
    common = {"layers": 2, "head": "exact", "soft_tissue": "own"}
    return dict(list(own.items())[2:]) | common  # the first two are the channels


def _factory(architecture: str) -> Callable[..., nn.Module]:
    found = _found(architecture)
    if architecture in GENERATORS:
        return found
    from blsgan.models.backbones import BackboneGenerator

    return partial(BackboneGenerator, architecture, found)


def _check_size(
    architecture: str, network: Callable[..., nn.Module], configuration: Mapping[str, Any]
) -> None:
    if architecture in BOUNDED:
        return
    with torch.device("meta"):  # takes no memory, draws no random number
        size = sum(parameter.numel() for parameter in network(**configuration).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"it would have {size} parameters, more than {MAX_PARAMETERS}")


def _is_moderate(configuration: Mapping[str, Any]) -> bool:
    """Whether all values are words, switches, numbers up to :data:`MAX_SIZE`, or short lists of
    such numbers."""
    numbers: list[Any] = []
    for value in configuration.values():
        if isinstance(value, bool) or (isinstance(value, str) and len(value) <= _MAX_LENGTH):
            continue
        several = isinstance(value, (list, tuple)) and len(value) <= _MAX_LENGTH
        numbers += value if several else [value]
    # NaN is in no range.
    return all(type(number) in (int, float) and 0 <= number <= MAX_SIZE for number in numbers)
