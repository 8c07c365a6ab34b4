"""The errors a user can cause, each with the exit status the command line ends with.

Every message is one sentence that names the file, the value and the way out; the command line
prints it as it is, without a traceback.
"""

from __future__ import annotations


class BlsganError(Exception):
    """Base of every error that blsgan raises on purpose; ``exit_code`` is 1."""

    exit_code = 1


class InputError(BlsganError, ValueError):
    """The data cannot be used: a damaged file, masks of another size, a constant image."""


class UsageError(BlsganError, ValueError):
    """The command or call itself is wrong: an unknown option value, a missing argument."""

    exit_code = 2


class WeightsError(BlsganError, RuntimeError):
    """A weights file is missing, damaged (hash) or of another architecture."""


class BackendError(BlsganError, RuntimeError):
    """A backend was asked for that cannot run here; the message says why."""


class OutputError(BlsganError, OSError):
    """A result could not be written: folder not writable, disk full."""
