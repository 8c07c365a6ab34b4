"""The import rules hold, light commands stay light, and there is one version."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest

import blsgan
from blsgan.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]

HEAVY = {"torch", "matplotlib", "scipy", "skimage", "cv2", "onnx", "openvino"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``code``."""
    report = "import json as _j, sys as _s; print('\\n' + _j.dumps(sorted(_s.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_imports_go_down_only():
    """import-linter's contracts, in pyproject.toml; a new module must be given its layer there."""
    pytest.importorskip("importlinter", reason="import-linter is in the extra 'test'")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout), done.stdout


def test_importing_the_package_imports_nothing_heavy():
    loaded = modules_after("import blsgan; blsgan.__version__; dir(blsgan)")
    assert loaded & (HEAVY | {"numpy", "onnxruntime", "click", "PIL"}) == set()


def test_the_separator_comes_on_first_use_without_torch():
    assert modules_after("import blsgan; blsgan.Separator; blsgan.Separation") & HEAVY == set()


def test_only_the_public_names_are_shown():
    classes = ["HandSeparator", "Locator", "Segmenter", "Separator"]
    functions = ["hand", "hand_visits", "measure", "nn", "ops", "read", "segment", "separate"]
    assert dir(blsgan) == [*classes, "errors", *functions]
    loaded = modules_after("import blsgan; blsgan.separate; blsgan.ops; blsgan.errors")
    assert "torch" not in loaded


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Seperator'"):
        _ = blsgan.Seperator


def test_help_imports_nothing_heavy():
    loaded = modules_after("from blsgan.cli import main; assert main(['--help']) == 0")
    assert loaded & (HEAVY | {"numpy", "onnxruntime"}) == set()


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_each_command_imports_no_torch(command):
    loaded = modules_after(
        f"from blsgan.cli import main; assert main([{command!r}, '--help']) == 0"
    )
    assert loaded & {"torch", "matplotlib"} == set()


def test_one_version():
    from blsgan.ops import native

    assert installed_version("blsgan") == blsgan.__version__, "install blsgan again"
    assert native.build_info()["version"] == blsgan.__version__, "compile blsgan again"


@pytest.mark.parametrize(
    ("file", "pattern"),
    [("CHANGELOG.md", r"^## \[?v?([0-9][^\s\]]*)"), ("CITATION.cff", r"^version: \"?([^\s\"]+)")],
)
def test_documents_name_the_version(file, pattern):
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{file} names no version"
    assert found[1] == blsgan.__version__


def test_cmake_reads_the_same_version():
    """CMakeLists.txt takes it from blsgan/__init__.py with this expression."""
    text = (ROOT / "blsgan" / "__init__.py").read_text(encoding="utf-8")
    assert (
        re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE)[1] == blsgan.__version__
    )
