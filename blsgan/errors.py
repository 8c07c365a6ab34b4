"""The errors a user can cause, each with the exit status the command line ends with.

Every message is one sentence that names the file, the value and the way out; the command line
prints it as it is, without a traceback.

>>> try:
...     blsgan.separate("nowhere.png")
... except blsgan.errors.InputError as error:
...     print(error)
nowhere.png does not exist; check the path of the image.
"""

from __future__ import annotations

import errno
import os

_MAX_MESSAGE = 5000  # a path has up to 4096


def debugging() -> bool:
    """Whether a bug shall end in its traceback: where ``BLSGAN_DEBUG=1`` is set."""
    return os.environ.get("BLSGAN_DEBUG", "") not in ("", "0")


def unexpected(error: BaseException) -> str:
    """The sentence for an exception that nobody foresaw, that is a bug."""
    text = " ".join(str(error).split())[:200]
    return (
        f"unexpected {type(error).__name__}{f' ({text})' if text else ''}; please report this "
        "together with the output of `blsgan info --json` (BLSGAN_DEBUG=1 shows where it happened)."
    )


def unusable(error: BaseException) -> str | None:
    """The sentence for a path that the system refuses where nobody asked whether it would.

    A name beyond the file system's limit, a folder that may not be entered, a disk that fails or is
    full. None for any other error.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        import tempfile

        return (
            "the disk is full, that of the results or of temporary files "
            f"({tempfile.gettempdir()}); free some space, or name another folder for those in "
            "TMPDIR."
        )
    if error.filename is None:
        return None
    path = os.fsdecode(error.filename) if not isinstance(error.filename, int) else "a file"
    return f"{path} cannot be used ({error.strerror}); check the path, or choose another one."


class BlsganError(Exception):
    """Base of every error that blsgan raises on purpose; ``exit_code`` is 1.

    The message is one line that a terminal can show, whatever the file it quotes holds.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = " ".join(super().__str__().splitlines())
        if len(text) > _MAX_MESSAGE:
            text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class InputError(BlsganError, ValueError):
    """The data cannot be used: a damaged file, masks of another size, a constant image."""


class NoJointError(InputError):
    """The picture shows no finger joint that masks could be predicted for."""


class NoHandError(InputError):
    """The picture shows no whole hand whose joints could be found."""


class UsageError(BlsganError, ValueError):
    """The command or call itself is wrong: an unknown option value, a missing argument."""

    exit_code = 2


class WeightsError(BlsganError, RuntimeError):
    """A weights file is missing, damaged (hash) or of another architecture."""


class BackendError(BlsganError, RuntimeError):
    """A backend was asked for that cannot run here; the message says why."""


class ParityError(BlsganError, RuntimeError):
    """A converted network does not compute what the original does; the message has the figures."""


class OutputError(BlsganError, OSError):
    """A result could not be written: folder not writable, disk full."""
