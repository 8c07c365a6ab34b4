"""Documents and code say the same: options, names, files."""

import importlib.util
import re
from importlib import import_module
from pathlib import Path

import pytest

from blsgan.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])


def maker(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_results_are_those_of_the_benchmarks():
    """Otherwise: python docs/make_results.py"""
    make = maker("make_results")
    pages = [page.read_text(encoding="utf-8") for page in make.PAGES]
    if not make.RESULTS.is_dir():
        pytest.skip("an sdist has no results of benchmarks")
    assert pages == [make.results(page) for page in pages]
    assert all(f"<!-- made: {name} -->" in "".join(pages) for name in make.TABLES)


def test_the_reference_of_the_command_line_is_what_the_commands_say():
    """Otherwise: python docs/make_reference.py"""
    make = maker("make_reference")
    page = make.PAGE.read_text(encoding="utf-8")
    assert page == make.reference(page)
    for name in COMMANDS:
        assert f"\n## `blsgan {name}" in page


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"


# Packages whose section of the Python reference names everything as module.attribute.
MODULES_BY_NAME = {
    f"blsgan.{name}"
    for name in (
        "clinical",
        "data",
        "deploy",
        "evaluation",
        "models",
        "report",
        "runtimes",
        "synthesis",
    )
}


def test_the_python_reference_names_what_exists():
    text = (ROOT / "docs/reference/python-api.md").read_text(encoding="utf-8")
    package = None
    for line in text.splitlines():
        heading = re.match(r"## `(blsgan[.\w]*)`", line)
        if heading:
            package = heading[1]
        elif package == "blsgan.jsn":
            for module, attribute in re.findall(r"`(\w+)\.(\w+)", line):
                assert hasattr(import_module(f"{package}.{module}"), attribute), attribute
        elif package in MODULES_BY_NAME:
            for name in re.findall(r"`([\w.]+)`", line):
                root = "blsgan" if name.startswith(("training.", "models.")) else package
                module, _, attribute = f"{root}.{name}".rpartition(".")
                assert hasattr(import_module(module), attribute), name


@pytest.mark.parametrize("task", ["separation", "segmentation", "location"])
def test_every_key_of_a_preset_is_in_the_reference(task):
    from blsgan.training.config import TASKS

    text = (ROOT / "docs/reference/training.md").read_text(encoding="utf-8")
    common = text.split("## The mask segmenter")[0]
    if task == "separation":
        text = common
    else:
        heading = {"segmentation": "mask segmenter", "location": "joint locator"}[task]
        text = text.split(f"## The {heading}\n")[1].split("\n## ")[0] + common

    def keys(model, prefix=""):
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from keys(field.annotation, f"{prefix}{name}.")
            else:
                yield prefix + name, field.default

    for key, default in keys(TASKS[task]):
        assert f"`{key}`" in text, key
        row = next(line for line in text.splitlines() if f"`{key}`" in line)
        if isinstance(default, (int, str)):
            assert f"| {default} |" in row, row
