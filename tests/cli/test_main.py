"""The command group: cheap to ask for help, one sentence for an error, the right exit status."""

from __future__ import annotations

import errno
import io
import shlex
import signal
import subprocess
import sys
from pathlib import Path

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


def test_a_message_is_one_line_whatever_it_quotes(raising, capsys):
    raising(InputError("a\n b\x1b[31m \udcff é " + "x" * 10_000))
    assert cli.main(["separate"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("blsgan: a  b\\x1b[31m \\udcff é xxx")
    assert said.count("\n") == 1
    assert len(said) < 6000


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["info", "--json"]])
def test_a_full_disk_behind_standard_output_is_said(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "blsgan", *arguments],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "blsgan: standard output cannot be written: the disk is full; free some space or choose "
        "another folder.\n"
    )


def test_a_disk_that_is_full_of_temporary_files_is_said(raising, capsys):
    raising(OSError(errno.ENOSPC, "No space left on device"))
    assert cli.main(["separate"]) == 1
    assert "name another folder for those in TMPDIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["separate", "{}", "-o", "out"],
        ["segment", "{}", "-o", "out"],
        ["report", "{}", "-o", "r.html"],
        ["inspect", "{}.onnx"],
        ["data", "verify", "{}"],
        ["evaluate", "--data", "{}", "-o", "out"],
        ["export-dicom", "{}", "--images", "in", "-o", "dicom"],
    ],
)
@pytest.mark.parametrize("name", ["x" * 300, "y/" * 3000], ids=["a name", "a path"])
def test_a_name_beyond_the_file_systems_limit_is_said(arguments, name, capsys):
    assert cli.main([part.format(name) for part in arguments]) == 1
    error = capsys.readouterr().err
    assert "unexpected" not in error
    assert error.startswith(f"blsgan: {name[:20]}")


def _stopping(*lines):
    """What becomes of a command whose work are these lines, in a process of its own."""
    code = (
        "import os, signal, sys, time, click\nfrom blsgan import cli\n"
        "me = os.getpid()\n"
        "@click.command()\ndef command():\n"
        + "".join(f"    {line}\n" for line in lines)
        + "cli.import_module = lambda name: type('m', (), {'command': command})\n"
        "sys.argv = ['blsgan', 'separate']\n"
        "status = cli.main()\n"
        "os.kill(me, signal.SIGINT)\n"  # and once more, while Python shuts down
        "sys.exit(status)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_who_presses_ctrl_c_twice_means_it_once():
    done = _stopping(
        "try: os.kill(me, signal.SIGINT); time.sleep(5)",
        "finally:",
        "    os.kill(me, signal.SIGINT); time.sleep(0.01); print('cleaned up')",
    )
    assert done.stdout == "cleaned up\n"
    assert done.stderr.strip() == "blsgan: interrupted; nothing is left half-written."
    assert done.returncode == 130


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_of_which_a_library_makes_another_error(number):
    """A compiled module that is being imported turns it into an ImportError."""
    done = _stopping(
        "from blsgan.errors import BackendError",
        f"try: os.kill(me, signal.{number}); time.sleep(5)",
        "except BaseException as error: raise BackendError('does not load') from error",
    )
    word, status = {"SIGTERM": ("terminated", 143), "SIGINT": ("interrupted", 130)}[number]
    assert done.stderr.strip() == f"blsgan: {word}; nothing is left half-written."
    assert done.returncode == status


def test_clean_up_that_hangs_can_be_interrupted(monkeypatch):
    signals = cli.Signals(process_ends=False)
    with signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # at once: not heard
        monkeypatch.setattr("blsgan.cli.signals._PATIENCE_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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
