"""The command group: cheap to ask for help, one sentence for an error, the right exit status."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys

import click
import pytest

from blsgan import __version__, cli
from blsgan.errors import BackendError, InputError, OutputError, UsageError, WeightsError

HEAVY = {"numpy", "PIL", "torch", "onnxruntime", "rich", "scipy", "cv2", "skimage", "pydicom"}


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "blsgan", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def raising(monkeypatch):
    """Make `blsgan separate` raise something."""

    def install(error):
        @click.command()
        def command():
            raise error

        monkeypatch.setattr(cli, "import_module", lambda name: type("m", (), {"command": command}))

    return install


def test_help_lists_every_command_and_imports_none():
    code = (
        "import sys; from blsgan.cli import main; status = main(['--help'])\n"
        f"print(sorted({HEAVY} & set(sys.modules)), status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    for name in cli.COMMANDS:
        assert f"  {name} " in done.stdout
    assert done.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.parametrize("name", ["separate", "demo"])
def test_help_of_a_command(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert "--weights" in capsys.readouterr().out


def test_the_table_and_the_commands_agree():
    for name in ("separate", "demo"):
        command = cli.cli.get_command(None, name)
        assert command.get_short_help_str(200)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("a.png is empty."), 1),
        (WeightsError("w.onnx is damaged."), 1),
        (BackendError("no."), 1),
        (OutputError("disk full."), 1),
        (UsageError("wrong."), 2),
        (click.UsageError("wrong"), 2),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 1),
    ],
)
def test_errors_and_their_status(raising, capsys, error, status):
    raising(error)
    assert cli.main(["separate"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    if isinstance(error, (InputError, WeightsError, OutputError)):
        assert captured.err == f"blsgan: {error}\n"


def test_a_bug_asks_for_a_report(raising, capsys, monkeypatch):
    monkeypatch.delenv("BLSGAN_DEBUG", raising=False)
    raising(ZeroDivisionError("one\nby zero"))
    assert cli.main(["separate"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("blsgan: unexpected ZeroDivisionError (one by zero); please report")
    assert "`blsgan info --json`" in message
    assert message.count("\n") == 1


def test_a_bug_is_not_hidden_from_who_looks_for_it(raising, monkeypatch):
    raising(ZeroDivisionError())
    monkeypatch.setenv("BLSGAN_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["separate"])


def test_a_reader_that_leaves_is_no_bug():
    """`blsgan ... | true`"""
    code = (
        "import os, sys; from blsgan.cli import main\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "sys.exit(main(['--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_names_that_the_terminal_cannot_say(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)

    @click.command()
    def command():
        click.echo("太郎 \udcff", file=sys.stdout)

    monkeypatch.setattr(cli, "import_module", lambda name: type("m", (), {"command": command}))
    assert cli.main(["separate"]) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u592a\\u90ce \\udcff\n"


def test_unknown_command_and_option():
    done = run("seperate")
    assert done.returncode == 2
    assert "there is no command seperate; did you mean separate?" in done.stderr
    assert run("separate", "x.png", "--nonsense").returncode == 2
    assert run("separate", "x.png").returncode == 2  # no --output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("jsn stduy", "did you mean study?"),
        ("data verfy", "did you mean verify?"),
        ("xyzzy", "blsgan --help lists them"),
        ("separate a.png --overwrit -o out", "--overwrite"),
    ],
)
def test_what_a_misspelt_word_was_meant_to_be(capsys, words, said):
    assert cli.main(words.split()) == 2
    assert said in capsys.readouterr().err


def leaves(command, parent=None, name="blsgan"):
    context = click.Context(command, info_name=name, parent=parent)
    yield context
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            yield from leaves(command.get_command(context, each), context, each)


COMMANDS = list(leaves(cli.cli))[1:]


@pytest.mark.parametrize("context", COMMANDS, ids=lambda context: context.command_path)
def test_every_help_has_an_example_that_is_a_call(context, monkeypatch):
    called = []
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: called.append(context))
    words = shlex.split(context.command.epilog.removeprefix("Example: "))
    assert cli.main(words[1:]) == 0
    wanted = context.command_path.removesuffix("-segmenter")  # the old name's example is the new
    assert called[-1].command_path.startswith(wanted)


@pytest.mark.parametrize("context", COMMANDS, ids=lambda context: context.command_path)
def test_quiet_and_verbose_are_everywhere(context):
    options = {option for parameter in context.command.params for option in parameter.opts}
    assert isinstance(context.command, click.Group) or {"-q", "-v"} <= options
