"""The user's cache folder: what a GPU's runtime compiled, so that it is not compiled at each start.

``$XDG_CACHE_HOME/blsgan``, else ``~/.cache/blsgan``. It may be deleted at any time. What lies in it
is run, so it is its user's alone.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from blsgan.errors import OutputError

_WAY_OUT = "name another place for caches in XDG_CACHE_HOME"


def cache_folder(*parts: str) -> Path:
    """A folder below the user's cache folder, made if it is missing.

    Raises :class:`OutputError` where it cannot be written, or where others can write it.
    """
    folder = _root().joinpath(*parts)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        facts = folder.stat()
    except OSError as error:
        raise OutputError(
            f"the cache folder {folder} cannot be written ({error.strerror}); {_WAY_OUT}."
        ) from error
    if facts.st_uid != os.geteuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OutputError(
            f"the cache folder {folder} can be written by others, and what lies in it is run; "
            f"take their rights away (chmod 700), or {_WAY_OUT}."
        )
    return folder


def _root() -> Path:
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # the specification ignores others
        return Path(named, "blsgan")
    try:
        return Path.home() / ".cache" / "blsgan"
    except RuntimeError as error:  # a container's user without an entry and without HOME
        raise OutputError(f"there is no home folder for caches; {_WAY_OUT}.") from error
