"""Lists of files as JSON, as the public dataset has them and as other programs save them again."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
from collections import defaultdict
from pathlib import Path, PurePath
from typing import Any

from blsgan.errors import InputError
from blsgan.io.files import as_read, read_file


def read_list(path: os.PathLike[str] | str, *, what: str = "list") -> list[Any]:
    """The entries of a JSON list, those that are objects without their empty keys.

    UTF-8 or UTF-16, with or without a byte order mark. ``null`` says what a missing key says; a
    backslash between folders is a slash, unless a file has that very name; a path in the other
    Unicode form is that of the file that reads alike. Raises :class:`InputError` for what is no
    such list.
    """
    file = read_file(path, what=what)
    try:
        entries = json.loads(decode_json(file.data))
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            f"{path} is not a JSON list such as the public dataset's (it is not JSON: {reason}); "
            "check the file."
        ) from error
    if not isinstance(entries, list):
        raise InputError(f"{path} is not a JSON list such as the public dataset's; check the file.")
    names = NamesBelow(Path(path).parent)
    return [
        {key: names.of(value) for key, value in entry.items() if value is not None}
        if isinstance(entry, dict)
        else entry
        for entry in entries
    ]


def decode_json(data: bytes) -> str:
    """The text of a JSON file in UTF-8 or UTF-16; raises ValueError where it is neither."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if data[:2] in (b"[\0", b"{\0"):
        return data.decode("utf-16-le")
    if data[:2] in (b"\0[", b"\0{"):
        return data.decode("utf-16-be")
    return data.decode("utf-8-sig")


def begins_as_json(data: bytes) -> bool:
    """Whether the first bytes of a file are those of a JSON list or object."""
    try:
        text = decode_json(data[: len(data) // 2 * 2])
    except UnicodeDecodeError as error:
        text = data[: error.start].decode("utf-8", "ignore")
    return text.lstrip("\ufeff \t\r\n")[:1] in ("[", "{")


class NamesBelow:
    """How the files below a folder are really called, where a list writes their names otherwise."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, dict[str, list[str]]] = {}

    def of(self, value: Any) -> Any:
        """A list's ``value`` as a path below the folder; as it is where it is no such path."""
        if not isinstance(value, str) or (value.isascii() and "\\" not in value):
            return value
        if os.path.exists(self._folder / value):
            return value
        value = value.replace("\\", "/")
        found = PurePath()
        for part in PurePath(value).parts:
            if not os.path.lexists(self._folder / found / part):
                alike = self._names(self._folder / found).get(as_read(part), [])
                if len(alike) != 1:
                    return value
                part = alike[0]
            found /= part
        return str(found)

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """Those in ``folder``, by how they read; each folder is read once."""
        if folder not in self._read:
            found: defaultdict[str, list[str]] = defaultdict(list)
            with contextlib.suppress(OSError, ValueError):
                for name in os.listdir(folder):
                    found[as_read(name)].append(name)
            self._read[folder] = found
        return self._read[folder]
