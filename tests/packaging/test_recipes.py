"""Containers and units call commands that exist, and install what the project declares."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from blsgan.cli import cli

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "packaging" / "docker").glob("Dockerfile.*"))
SERVICE = ROOT / "packaging" / "systemd" / "blsgan-watch.service"


def parses(arguments):
    """Raises a usage error for a command line of blsgan that names what does not exist."""
    context = click.Context(cli)
    command = cli.get_command(context, arguments[0])
    assert command is not None, f"there is no command {arguments[0]}"
    command.make_context(arguments[0], list(arguments[1:]), parent=context)


def extras():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^([a-z-]+) = ", section, re.MULTILINE))


def test_a_command_line_that_does_not_exist_is_seen():
    with pytest.raises(click.UsageError):
        parses(["separate", "in", "-o", "out", "--device-of-mine", "gpu"])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_a_dockerfile(path):
    text = path.read_text(encoding="utf-8")
    instructions = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    words = [line.split(maxsplit=1) for line in instructions.splitlines() if line.strip()]
    assert words[:2] == [["ARG", "PYTHON=3.12"], ["FROM", "python:${PYTHON}-slim"]]
    (given,) = re.findall(r"docker build .* --build-arg (\w+)=", text)
    assert given == "PYTHON"
    assert ["COPY", "dist/*.whl /tmp/wheels/"] in words  # where `make wheels` puts them
    assert ["USER", "blsgan"] in words
    assert ["ENTRYPOINT", '["blsgan"]'] in words
    assert set(re.findall(r"blsgan\[([a-z-]+)\]", text)) <= extras()
    assert ("blsgan[rtx]" in text) == (path.suffix == ".gpu")
    parses(["doctor"])
    usage = " ".join(re.findall(r"^#\s+(.*)$", text.split("\nARG")[0], re.MULTILINE)).replace(
        "\\ ", ""
    )
    called = usage.split("docker run", 1)[1]
    assert "--network none" in called
    parses(shlex.split(called[called.index("separate") :]))


def test_the_unit_calls_a_command_that_exists_and_is_shut_in():
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(SERVICE, encoding="utf-8")
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert program == "/opt/blsgan/bin/blsgan"
    parses(arguments)
    assert unit["Service"]["ReadWritePaths"] == arguments[arguments.index("-o") + 1]
    for name in ("PrivateNetwork", "NoNewPrivileges", "ProtectHome"):
        assert unit["Service"][name] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_the_units_are_what_systemd_reads(tmp_path):
    for path in (SERVICE, SERVICE.with_suffix(".timer")):
        text = path.read_text(encoding="utf-8").replace("/opt/blsgan/bin/blsgan", sys.executable)
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
