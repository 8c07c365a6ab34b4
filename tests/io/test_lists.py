"""One reader for lists of files: as the dataset has them, and as other programs save them again."""

from __future__ import annotations

import json
import unicodedata

import pytest

from blsgan.data.layout import IMAGE_FOLDER, listed_pair_path, load_list
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


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_a_list_in_the_other_unicode_form_names_the_same_files(tmp_path, listed):
    """What macOS packs and Linux unpacks: the list in one form, the files in the other."""
    folder, name = "Joël_L_2", "é.png"
    on_disk = {"NFC": "NFD", "NFD": "NFC"}[listed]
    there = tmp_path / unicodedata.normalize(on_disk, folder) / unicodedata.normalize(on_disk, name)
    there.parent.mkdir()
    there.write_bytes(b"x")
    value = unicodedata.normalize(listed, f"{folder}\\{name}")
    entry = {"image": value, "upper": value, "lower": value, "background": "ü/none"}
    path = tmp_path / "LS_K1_all_train"
    path.write_text(json.dumps([entry]))
    (image,) = load_list(path)
    assert image.image == there
    assert image.background == tmp_path / "ü/none"
    # The split and every draw hang on the name, so it is one and the same.
    assert image.name == unicodedata.normalize("NFC", "Joël_L_2/é")
    (tmp_path / IMAGE_FOLDER).mkdir()
    below = there.parent.rename(tmp_path / IMAGE_FOLDER / there.parent.name) / there.name
    name_listed = unicodedata.normalize(listed, f"{folder}/{name}")
    assert listed_pair_path(tmp_path, name_listed) == below
