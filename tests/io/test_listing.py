"""From a folder to a work list: masks found by their naming, a name of its own for every result."""

from __future__ import annotations

from pathlib import Path

import pytest

from blsgan.errors import InputError, UsageError
from blsgan.io.listing import check_mask_pattern, find_mask, list_folder, name_results


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
