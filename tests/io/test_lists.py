"""One reader for lists of files: as the dataset has them, and as other programs save them again."""

from __future__ import annotations

import json

import pytest

from blsgan.data.layout import load_list
from blsgan.data.verify import verify
from blsgan.errors import InputError
from blsgan.io.lists import begins_as_json, read_list

ENTRY = {"image": "J/é.jpg", "upper": "J/u.bmp", "lower": "J/l.bmp", "background": None}
TEXT = json.dumps([ENTRY], ensure_ascii=False, indent=1)


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        TEXT.replace("/", "\\\\").encode(),
    ],
    ids=["plain", "mark", "utf-16", "utf-16-le", "utf-16-be", "windows", "backslashes"],
)
def test_a_list_is_read_however_it_was_saved(tmp_path, data):
    path = tmp_path / "LS_K1_all_train"
    path.write_bytes(data)
    assert begins_as_json(data[:64])
    assert read_list(path) == [{key: ENTRY[key] for key in ("image", "upper", "lower")}]
    (image,) = load_list(path)
    assert (image.image, image.background) == (tmp_path / "J/é.jpg", None)
    # The list is one for `data verify` as well; what it names is not there.
    assert {found.kind for found in verify(tmp_path).of("error")} == {"missing"}


def test_a_backslash_in_a_name_that_is_there_stays(tmp_path):
    (tmp_path / "a\\b.png").write_bytes(b"x")
    (tmp_path / "list").write_text(json.dumps([{"image": "a\\b.png", "upper": "c\\d.png"}]))
    assert read_list(tmp_path / "list") == [{"image": "a\\b.png", "upper": "c/d.png"}]


def test_null_is_as_good_as_missing(tmp_path):
    (tmp_path / "list").write_text(json.dumps([{**ENTRY, "upper": None}]))
    with pytest.raises(InputError, match="entry 0 has no 'upper'"):
        load_list(tmp_path / "list")


@pytest.mark.parametrize(
    "data",
    [b"{}", b"[1, 2", b"\xff\xfe[", b"\x80[]", b"[" * 100_000, b"[[]]", b"null", b"[NaN, 1e999]"],
)
def test_what_is_no_list_has_a_sentence(tmp_path, data):
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(InputError, match="is not a JSON list"):
        load_list(tmp_path / "list")
