"""Documents and code say the same: options, names, files."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from blsgan.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_of_every_command_is_in_the_reference(name):
    text = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    assert f"`blsgan {name}" in text
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    section = next(part for part in sections if re.match(rf"`blsgan {name}[` ]", part))
    for part in re.split(r"^### ", section, flags=re.MULTILINE):
        rows = re.findall(r"^\| (`-.*?) \|", part.replace(r"\|", "/"), re.MULTILINE)
        described = [re.findall(r"`(-[-\w]+)`", row)[0] for row in rows]
        assert len(described) == len(set(described)), described
    command = import_module(COMMANDS[name][0]).command
    commands = [command, *getattr(command, "commands", {}).values()]
    for parameter in (parameter for each in commands for parameter in each.params):
        for option in parameter.opts:
            assert option in section or parameter.param_type_name == "argument", option


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_says_what_help_says(name):
    """A line that was cut in one of them shows."""
    text = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    said = " ".join(text.replace("`", "").split())
    command = import_module(COMMANDS[name][0]).command
    prose = [part for part in (command.help or "").split("\n\n") if "Example:" not in part]
    for paragraph in prose:
        assert " ".join(paragraph.replace("`", "").split()) in said, paragraph


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


@pytest.mark.parametrize("task", ["separation", "segmentation"])
def test_every_key_of_a_preset_is_in_the_reference(task):
    from blsgan.training.config import TASKS

    text = (ROOT / "docs/reference/training.md").read_text(encoding="utf-8")
    common, own = text.split("## The mask segmenter")
    text = common if task == "separation" else own.split("\n## ")[0] + common

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
