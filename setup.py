"""Extensions for setuptools; everything else is in pyproject.toml.

How they are compiled and linked: build_backend/blsgan_build/extensions.py.
"""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "build_backend"))

from blsgan_build.extensions import BuildExtensions, declared_extensions

setup(ext_modules=declared_extensions(), cmdclass={"build_ext": BuildExtensions})
