"""The split is by joint, fixed for ever, and leaks nothing."""

import json

import numpy as np
import pytest

from blsgan.data.dataset import load_root
from blsgan.data.layout import by_joint, joints_of, load_list, overlap_px, read_joint
from blsgan.data.splits import is_validation, select
from blsgan.errors import InputError, UsageError

KNOWN = {"00054_L_13": False, "00000_L_5": False, "00002_L_2": True}


def test_the_split_is_the_one_that_the_shipped_weights_were_trained_with():
    # Known answers: a changed hash would move joints between training and validation.
    expected = {name: is_validation(name) for name in ("00054_L_13", "00000_L_5", "00002_L_2")}
    assert expected == KNOWN
    share = np.mean([is_validation(f"{i:05d}_R_{j}") for i in range(2000) for j in (2, 5, 8)])
    assert 0.15 < share < 0.21


def test_no_joint_is_on_both_sides(dataset):
    images = load_root(dataset)
    train, val = select(images, "train"), select(images, "val")
    assert len(train) + len(val) == len(images)
    assert not set(joints_of(train)) & set(joints_of(val))
    assert select(images, "all") == images
    with pytest.raises(UsageError, match="'test' is unknown"):
        select(images, "test")


def test_the_layout_is_read_as_it_is(dataset):
    images = load_root(dataset)
    assert [image.name for image in images] == sorted(image.name for image in images)
    groups = by_joint(images)
    assert all(len(visits) == 2 for visits in groups.values())
    overlapped, free = groups[images[0].joint]
    arrays = read_joint(overlapped)
    assert arrays.image.dtype == np.uint8
    assert arrays.masks.dtype == bool
    assert arrays.masks.shape == (2, *arrays.image.shape)
    assert arrays.background.shape == arrays.image.shape
    assert overlap_px(arrays.masks) > 20 > overlap_px(read_joint(free).masks)


def test_what_is_not_the_dataset_is_said(tmp_path, dataset):
    with pytest.raises(InputError, match="not a folder"):
        load_root(tmp_path / "none")
    with pytest.raises(InputError, match="none of the dataset's list files"):
        load_root(tmp_path)
    listing = tmp_path / "LS_K1_all_train"
    for text, expected in (
        ("{", "not a JSON list"),
        ("{}", "not a JSON list"),
        ('[{"image": "a.jpg"}]', "entry 0 has no 'upper'"),
    ):
        listing.write_text(text)
        with pytest.raises(InputError, match=expected):
            load_list(listing)


def test_damaged_files_are_named(tmp_path, dataset):
    import shutil

    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    image = load_root(root)[0]
    image.upper.unlink()
    with pytest.raises(InputError, match="named in the dataset's list but missing"):
        read_joint(image)
    image.upper.write_bytes(b"BM not a bitmap")
    with pytest.raises(InputError, match="not a readable image"):
        read_joint(image)
    from PIL import Image

    Image.fromarray(np.zeros((256, 256), np.uint8)).save(image.upper)
    with pytest.raises(InputError, match="is empty"):
        read_joint(image)
    small = np.zeros((9, 7), np.uint8)
    small[2:5] = 255
    Image.fromarray(small).save(image.upper)
    with pytest.raises(InputError, match=r"7x9 px but .* is 256x256 px"):
        read_joint(image)


def test_a_list_with_an_entry_twice_gives_it_once(tmp_path, dataset):
    entries = json.loads((dataset / "LS_K1_all_train").read_text())
    for name in ("LS_K1_all_train", "LS_K1_overlap_train"):
        (tmp_path / name).write_text(json.dumps(entries))
    assert len(load_root(tmp_path)) == len(entries)


def test_a_16_bit_image_is_refused_and_not_read_as_white(tmp_path, dataset):
    import shutil

    from PIL import Image

    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    image = load_root(root)[0]
    deep = np.full((256, 256), 30000, np.uint16)
    with image.image.open("wb") as file:
        Image.fromarray(deep).save(file, format="PNG")
    with pytest.raises(InputError, match="16 bits"):
        read_joint(image)
