"""From a folder to a work list: masks found by their naming, a name of its own for every result."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from blsgan.errors import InputError, UsageError
from blsgan.io.listing import (
    check_mask_pattern,
    describe_passed_over,
    find_mask,
    list_folder,
    name_results,
)


@pytest.fixture
def touch(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return tmp_path

    return make


def test_the_public_datasets_layout(touch):
    root = touch(
        "00054_L_13/a.jpg",
        "00054_L_13/a_mask_upper.bmp",
        "00054_L_13/a_mask_lower.bmp",
        "00055_R_2/a.jpg",
        "00055_R_2/a_mask_upper.bmp",
        "00055_R_2/a_mask_lower.bmp",
        "background/00054_L_13_a.jpg",
        "LS_list",
        "notes.txt",
        ".hidden.png",
        ".cache/b.png",
    )
    items = list_folder(root)
    assert [(item.folder, item.name) for item in items] == [
        (Path("00054_L_13"), "a"),
        (Path("00055_R_2"), "a"),
    ]
    assert items[0].upper == root / "00054_L_13/a_mask_upper.bmp"
    assert items[1].lower == root / "00055_R_2/a_mask_lower.bmp"


def test_results_of_hands_are_no_input(touch):
    root = touch(
        "a.png", "a/hand.json", "a/hand_overview.png", "a/hand_upper.png", "a/mcp3/mcp3.png"
    )
    assert [item.image for item in list_folder(root)] == [root / "a.png"]
    assert [item.name for item in list_folder(root / "a" / "mcp3")] == ["mcp3"]


def test_an_image_without_a_mask_stays_in_the_list(touch):
    items = list_folder(touch("a.png", "a_mask_upper.png", "b.png"))
    assert [(item.name, item.upper is None, item.lower is None) for item in items] == [
        ("a", False, True),
        ("b", True, True),
    ]


def test_pattern_with_a_folder_and_an_ending(touch):
    root = touch("a.png", "masks/a-upper.png", "masks/a-lower.png")
    (item,) = list_folder(root, "masks/{stem}-{bone}.png")
    assert item.upper == root / "masks/a-upper.png"


def test_pattern_without_an_ending_must_be_unambiguous(touch):
    root = touch("a.png", "a_mask_upper.png", "a_mask_upper.bmp")
    with pytest.raises(InputError, match="several upper masks"):
        find_mask(root / "a.png", "upper")


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "{stem}",
        "{bone}{other}",
        "{bone",
        "{bone}{0}",
        "{bone.__class__}",
        "{bone[0]}",
        "{bone:d}",
        "{stem:>999999999}{bone}",
        "{bone!r}",
        "{bone:{stem}}",
    ],
)
def test_bad_patterns(pattern):
    with pytest.raises(UsageError, match="mask pattern"):
        check_mask_pattern(pattern)


def test_endings_in_upper_case(touch):
    root = touch("A.PNG", "A_mask_upper.BMP", "A_mask_lower.Tif", "a_mask_upper.bmp")
    (item,) = [item for item in list_folder(root) if item.name == "A"]
    assert item.upper == root / "A_mask_upper.BMP"
    assert item.lower == root / "A_mask_lower.Tif"
    assert find_mask(root / "A.PNG", "upper", "{stem}_mask_{bone}.bmp") == item.upper
    touch("A_mask_upper.png")
    with pytest.raises(InputError, match=r"A_mask_upper\.BMP, A_mask_upper\.png"):
        find_mask(root / "A.PNG", "upper")
    assert find_mask(root / "A.PNG", "upper", "{stem}_mask_{bone}.bmp") == item.upper


def test_a_name_too_long_to_have_a_mask(touch):
    (item,) = list_folder(touch("a" * 250 + ".png"), "{stem}_mask_{bone}.bmp")
    assert item.upper is None


def test_folder_without_images(touch):
    with pytest.raises(InputError, match="holds no image"):
        list_folder(touch("notes.txt"))


def test_results_are_not_inputs_of_the_next_run(touch):
    root = touch("a.png", "out/a_upper.png", "a_upper.png", "a_panel.png", "a.json", "c_upper.png")
    names = [item.name for item in list_folder(root, exclude=root / "out")]
    assert names == ["a", "c_upper"]


def test_same_stem_in_one_folder(touch):
    root = touch("a.png", "a.jpg", "A.tif", "b.png")
    names = [item.name for item in list_folder(root)]
    assert sorted(names) == ["A_tif", "a_jpg", "a_png", "b"]


def test_results_stay_inside_the_output_folder():
    items = name_results(
        [
            (Path("../x/a.png"), None, None, Path("../x")),
            (Path("/abs/x/a.png"), None, None, Path("/x")),
            (Path("x/a.png"), None, None, Path("x")),
        ]
    )
    assert [item.folder for item in items] == [Path("x")] * 3
    assert len({item.name for item in items}) == 3


@pytest.mark.parametrize(("image", "mask"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_masks_of_the_other_unicode_form_are_found(touch, image, mask):
    """A folder from a Mac, whose masks were drawn elsewhere: else masks would be predicted."""
    name, other = (unicodedata.normalize(form, "Jörg_é") for form in (image, mask))
    assert name != other
    root = touch(f"{name}.png", f"{other}_mask_upper.png", f"{other}_mask_lower.bmp")
    (item,) = list_folder(root)
    assert (item.image.name, item.upper.name) == (f"{name}.png", f"{other}_mask_upper.png")
    assert item.lower is not None
    assert find_mask(root / f"{name}.png", "upper", "{stem}_mask_{bone}.png") == item.upper


def test_images_that_read_the_same_have_names_of_their_own(touch):
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    items = list_folder(touch(*names))
    keys = {unicodedata.normalize("NFC", item.name) for item in items}
    assert len(items) == len(keys) == 2


def test_what_a_folder_holds_that_is_not_read_is_counted(touch):
    root = touch(
        "a.png", "a_mask_upper.png", "a_mask_lower.png", "notes.txt", "b.txt", "film", "c.pdf"
    )
    passed_over = []
    assert [item.name for item in list_folder(root, passed_over=passed_over)] == ["a"]
    assert describe_passed_over(root, passed_over) == (
        f"4 files were not read in {root}, being no radiograph or mask: 2 .txt, 1 .pdf, "
        "1 without ending"
    )
    assert describe_passed_over(root, []) is None


def test_results_beside_their_inputs_are_not_counted(touch):
    root = touch("a.png", "a_upper.png", "a_panel.png", "a.json")
    passed_over = []
    assert [item.name for item in list_folder(root, passed_over=passed_over)] == ["a"]
    assert passed_over == []


def test_dicom_files_of_a_cd_are_found_by_content(touch):
    root = touch("DICOM/S1/readme")
    (root / "DICOM/S1/IM000001").write_bytes(bytes(128) + b"DICM")
    old = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"
    (root / "DICOM/S1/IM000002").write_bytes(old + bytes(200))
    (root / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    passed_over = []
    items = list_folder(root, passed_over=passed_over)
    assert [item.name for item in items] == ["IM000001", "IM000002"]
    assert sorted(path.name for path in passed_over) == ["DICOMDIR", "readme"]


def test_a_pipe_in_the_folder_is_not_waited_for(touch):
    root = touch("a.png")
    os.mkfifo(root / "pipe")
    assert [item.name for item in list_folder(root)] == ["a"]


def test_links_in_a_circle_hide_nothing_else(touch, tmp_path):
    root = touch("a.png", "a_mask_upper.png", "a_mask_lower.png")
    (root / "circle").symlink_to("circle")
    (root / "circle.png").symlink_to("circle.png")
    (root / "self").symlink_to(".")
    (root / "gone.png").symlink_to("nowhere.png")
    passed_over = []
    items = list_folder(root, exclude=root / "circle" / "out", passed_over=passed_over)
    assert [(item.name, item.upper is not None) for item in items] == [
        ("a", True), ("circle", False), ("gone", False),
    ]  # fmt: skip
    assert sorted(passed_over) == [root / "circle", root / "self"]
    said = describe_passed_over(root, passed_over)
    assert "1 folder (a link, or it cannot be opened)" in said
