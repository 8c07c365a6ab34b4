"""PEP 517 backend: setuptools, with the torch of the environment that is installed into.

An isolated build sees no torch, and listing torch as a build requirement downloads gigabytes of a
build that is then not the one at run time. These hooks put the installing environment's
site-packages at the END of the path, so that everything the isolated environment has still wins,
and ask for torch only where there is none. ``BLSGAN_TORCH=0`` builds without torch.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import setuptools
from setuptools import build_meta

from blsgan_build.torch_source import TORCH_REQUIREMENT, expose_torch, torch_wanted

ROOT = Path(__file__).resolve().parents[2]

build_sdist = build_meta.build_sdist
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist


def _check_tools():
    """Without build isolation the tools are the environment's own: say which one is missing."""
    if int(setuptools.__version__.split(".")[0]) < 77:
        raise SystemExit(
            f"blsgan: setuptools {setuptools.__version__} is too old to build this package: run"
            " pip install 'setuptools>=77' first, or leave out --no-build-isolation."
        )
    if importlib.util.find_spec("pybind11") is None:
        raise SystemExit(
            "blsgan: pybind11 is not installed: run pip install 'pybind11>=2.13' first, or leave"
            " out --no-build-isolation."
        )


def _requires(config_settings, base):
    """``base`` requirements, plus torch where a build with torch finds none."""
    wanted = base(config_settings)
    if torch_wanted() and not expose_torch():
        wanted = [*wanted, TORCH_REQUIREMENT]
    return wanted


def get_requires_for_build_wheel(config_settings=None):
    """What a wheel build needs beyond pyproject.toml's ``requires``."""
    return _requires(config_settings, build_meta.get_requires_for_build_wheel)


def get_requires_for_build_editable(config_settings=None):
    """What an editable build needs beyond pyproject.toml's ``requires``."""
    return _requires(config_settings, build_meta.get_requires_for_build_editable)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    """Metadata alone; no torch is needed for it."""
    _check_tools()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    """Metadata alone; no torch is needed for it."""
    _check_tools()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build a wheel against the torch that is there."""
    _check_tools()
    expose_torch()
    # setuptools packs whatever an earlier build left here, modules that are gone included.
    for leftover in [*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*")]:
        shutil.rmtree(leftover)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Build the extensions in the tree and an editable wheel that points at it."""
    _check_tools()
    expose_torch()
    # A path in a .pth file instead of an import hook, which type checkers do not follow.
    settings = {"editable_mode": "compat", **(config_settings or {})}
    return build_meta.build_editable(wheel_directory, settings, metadata_directory)
