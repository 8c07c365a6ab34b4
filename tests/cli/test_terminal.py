"""Progress where nobody watches, and how loudly the work is spoken of."""

from __future__ import annotations

import logging
import time

import click
import pytest
from click.testing import CliRunner

from blsgan.cli import options, terminal
from blsgan.cli.terminal import Progress, listen, loudness_options, say


def run(work, *arguments):
    command = click.Command("work", callback=work, params=loudness_options())
    return CliRunner().invoke(command, arguments)


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(terminal, "LOG_EVERY_S", 0.1)


def slowly():
    with Progress() as progress:
        for _ in progress.track(range(2), "registering"):
            time.sleep(0.35)
        progress.step("drawing")
        time.sleep(0.35)


def test_off_a_terminal_lines_count_what_is_done(often):
    lines = run(slowly).stderr.splitlines()
    assert len(lines) >= 4
    assert lines[0].startswith("registering: 0 of 2")
    assert any(line.startswith("registering: 1 of 2") for line in lines)
    assert lines[-1].startswith("drawing (")


def test_quiet_says_nothing_of_the_work(often):
    def work():
        slowly()
        say("wrote it")
        click.echo("what was asked for")

    assert run(work, "-q").output == "what was asked for\n"
    assert "wrote it" in run(work).stderr


def test_what_the_package_logs_is_heard():
    def work():
        listen()
        logging.getLogger("blsgan.anything").warning("two threads are used")
        logging.getLogger("blsgan.anything").info("loaded")

    assert run(work).stderr == "note: two threads are used\n"
    assert run(work, "-v").stderr == "note: two threads are used\nblsgan: loaded\n"
    assert run(work, "-q").stderr == ""
    assert run(work, "-q", "-v").exit_code == 2


@pytest.mark.parametrize(
    "given", [["--of", "a,b"], ["--of", "a", "--of", "b"], ["--of", "a, b", "--of", "a"]]
)
def test_several_values_of_an_option(given):
    @click.command()
    @options.several("--of", "found", "Letters.", choices=("a", "b", "c"))
    def command(found):
        click.echo(",".join(found))

    assert CliRunner().invoke(command, given).output == "a,b\n"
    assert CliRunner().invoke(command, []).output == "\n"
    wrong = CliRunner().invoke(command, ["--of", "a,d"])
    assert wrong.exit_code == 2
    assert "'d'" in wrong.stderr
