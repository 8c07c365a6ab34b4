"""The documentation site: ``make docs``. Warnings are errors, notebooks are executed."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the classes of this tree
os.environ.setdefault("OMP_NUM_THREADS", "1")

from blsgan import __version__  # noqa: E402

project, author, release = "blsgan", "The blsgan authors", __version__
project_copyright = author
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_site"]
html_theme = "furo"
html_title = f"blsgan {release}"
html_show_copyright = False

autodoc_typehints = "none"  # shapes and dtypes are said in words
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
myst_heading_anchors = 3


def _links_out_of_the_site(app: Any, name: str, source: list[str]) -> None:
    """Documents elsewhere in the repository (tables of benchmarks, model cards) are downloads."""
    elsewhere = r"\]\(((?:\.\./)+(?:README|CONTRIBUTING|CHANGELOG|benchmarks/|blsgan/)[^)#]*\.md)"
    source[0] = re.sub(elsewhere, r"](path:\1", source[0])


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.connect("source-read", _links_out_of_the_site)
