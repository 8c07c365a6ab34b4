"""Lists of files as JSON, as the public dataset has them and as other programs save them again."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

from blsgan.errors import InputError
from blsgan.io.files import read_file


def read_list(path: os.PathLike[str] | str, *, what: str = "list") -> list[Any]:
    """The entries of a JSON list, those that are objects without their empty keys.

    UTF-8 or UTF-16, with or without a byte order mark. ``null`` says what a missing key says; a
    backslash between folders is a slash, unless a file has that very name. Raises
    :class:`InputError` for what is no such list.
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
    folder = Path(path).parent
    return [
        {key: _path(folder, value) for key, value in entry.items() if value is not None}
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


def _path(folder: Path, value: Any) -> Any:
    if not isinstance(value, str) or "\\" not in value or os.path.exists(folder / value):
        return value
    return value.replace("\\", "/")
