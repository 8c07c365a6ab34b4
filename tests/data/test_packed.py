"""A packed dataset gives the same images bit for bit, and damage never passes for data."""

import json
import pickle
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from blsgan.data.dataset import load_root
from blsgan.data.layout import content_digest, missing_files, read_joint
from blsgan.data.packed import PackedDataset, pack
from blsgan.data.truths import registration_key
from blsgan.errors import InputError, OutputError


@pytest.fixture(scope="module")
def packed(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "joints.blsgan"
    pack(load_root(dataset), path)
    return path


def same(a, b):
    assert (a.image.dtype, a.masks.dtype) == (np.uint8, bool)
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.masks, b.masks)
    assert (a.background is None) == (b.background is None)
    if a.background is not None:
        np.testing.assert_array_equal(a.background, b.background)


def test_the_same_images_bit_for_bit(packed, dataset):
    from_folder, from_file = load_root(dataset), load_root(packed)
    assert [i.name for i in from_file] == [i.name for i in from_folder]
    assert [i.joint for i in from_file] == [i.joint for i in from_folder]
    for one, other in zip(from_file, from_folder, strict=True):
        same(read_joint(one), read_joint(other))
    assert missing_files(from_file) == []


def test_whatever_hangs_on_the_files_bytes_hangs_on_them_here_too(packed, dataset):
    from_folder, from_file = load_root(dataset), load_root(packed)
    assert content_digest(from_file) == content_digest(from_folder[::-1])
    assert registration_key(from_file) == registration_key(from_folder)
    assert content_digest(from_file[1:]) != content_digest(from_file)


def test_packing_a_packed_file_gives_the_same_file(packed, tmp_path):
    again = tmp_path / "again"
    content = pack(load_root(packed), again)
    assert content == PackedDataset(packed).content_sha256
    assert again.read_bytes() == packed.read_bytes()


def test_the_content_hash_follows_pixels_and_names(packed, dataset, tmp_path):
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    contents = {PackedDataset(packed).content_sha256}
    first = load_root(root)[0]
    values = np.asarray(Image.open(first.upper)).copy()
    values[200, 3] ^= 255
    Image.fromarray(values).save(first.upper)
    contents.add(pack(load_root(root), tmp_path / "pixel"))
    text = (root / "LS_K1_all_train").read_text()
    text = text.replace(f"{first.joint}/a.jpg", f"{first.joint}/c.jpg")
    (root / "LS_K1_all_train").write_text(text)
    first.image.rename(first.image.with_name("c.jpg"))
    contents.add(pack(load_root(root), tmp_path / "name"))
    assert len(contents) == 3


def test_sizes_may_differ_and_backgrounds_be_missing(dataset, tmp_path):
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    first, second = load_root(root)[:2]
    for path in (first.image, first.upper, first.lower, first.background):
        with Image.open(path) as picture:
            small = picture.resize((131, 97), Image.Resampling.NEAREST)
        with path.open("wb") as file:
            small.save(file, format="PNG")
    second.background.unlink()
    path = tmp_path / "mixed"
    pack(load_root(root), path)
    images = load_root(path)
    for one, other in zip(images, load_root(root), strict=True):
        same(read_joint(one), read_joint(other))
    assert read_joint(images[0]).image.shape == (97, 131)
    assert read_joint(images[1]).background is None
    assert content_digest(images) == content_digest(load_root(root))


def test_torch_reads_the_same_file(packed):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    tensors = load_file(packed)
    assert tensors["256x256/image"].dtype == torch.uint8
    assert tensors["256x256/image"].shape == (8, 256, 256)
    image = load_root(packed)[0]
    np.testing.assert_array_equal(tensors["256x256/image"][0].numpy(), read_joint(image).image)


def test_another_process_opens_it_again(packed):
    image = pickle.loads(pickle.dumps(load_root(packed)[3]))
    same(read_joint(image), read_joint(load_root(packed)[3]))


@pytest.mark.parametrize("kept", [0, 7, 8, 1000, -1])
def test_a_truncated_file_is_refused_at_once(packed, tmp_path, kept):
    path = tmp_path / "short"
    path.write_bytes(packed.read_bytes()[:kept])
    with pytest.raises(InputError, match=str(path)):
        load_root(path)


def test_more_bytes_than_there_should_be_are_refused(packed, tmp_path):
    path = tmp_path / "long"
    path.write_bytes(packed.read_bytes() + b"\0")
    with pytest.raises(InputError, match="truncated"):
        load_root(path)


def body(path):
    data = bytearray(path.read_bytes())
    return data, 8 + struct.unpack("<Q", data[:8])[0]


def test_a_damaged_pixel_spoils_its_image_alone(packed, tmp_path):
    data, start = body(packed)
    path = tmp_path / "damaged"
    at = start + 2 * 256 * 256 + 77  # in the third image
    data[at] ^= 1
    path.write_bytes(data)
    images = load_root(path)
    for index, image in enumerate(images):
        if index == 2:
            with pytest.raises(InputError, match=f"{image.name} is damaged"):
                read_joint(image)
        else:
            read_joint(image)


def test_no_byte_can_be_changed_unnoticed(packed, tmp_path):
    data, start = body(packed)
    path = tmp_path / "damaged"
    truth = [read_joint(image) for image in load_root(packed)]
    rng = np.random.default_rng(0)
    places = [
        *rng.integers(0, start, 60),
        *rng.integers(start, len(data), 25),
        *(len(data) - rng.integers(1, 8 * 4 * 32, 8)),
    ]
    noticed = 0
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :])
        try:
            for image, expected in zip(load_root(path), truth, strict=True):
                same(read_joint(image), expected)  # a change of padding may change nothing
        except InputError as error:
            assert str(path) in str(error)
            noticed += 1
    assert noticed > 0.9 * len(places)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 something else", bytes(5000)])
def test_another_file_is_no_packed_dataset(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(InputError, match="packed"):
        load_root(path)


def test_weights_and_later_versions_are_no_packed_dataset_of_ours(packed, tmp_path):
    from blsgan.tasks.task import find_weights

    with pytest.raises(InputError, match="is no packed dataset; give"):
        load_root(find_weights("lite").safetensors)
    data = packed.read_bytes().replace(b'"version":"1"', b'"version":"2"')
    path = tmp_path / "later"
    path.write_bytes(data)
    with pytest.raises(InputError, match="version 2 and this blsgan reads version 1"):
        load_root(path)


def test_nothing_is_left_of_a_pack_that_failed(dataset, packed, tmp_path):
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    images = load_root(root)
    images[-1].lower.unlink()
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(InputError, match="missing"):
        pack(images, folder / "file")
    assert list(folder.iterdir()) == []
    with pytest.raises(InputError, match="two images are called"):
        pack([*images[:1], *images[:1]], folder / "file")
    with pytest.raises(OutputError):
        pack(load_root(packed), folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "row",
    [[1, "a.jpg", "256x256", 0, None], ["J", 5, "256x256", 0, None], ["J", "a", 6, 0, None],
     ["J", "a", "256x256", "0", None], ["J", "a", "256x256", True, None], ["J"], 7, None,
     ["J", "a", "256x256", -1, None], ["J", "a", "256x256", 0, 1.5], ["J", "a", "x", 0, None]],
)  # fmt: skip
def test_an_index_of_odd_types_is_damage(packed, tmp_path, row):
    data = packed.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    rows = json.loads(header["__metadata__"]["index"])
    header["__metadata__"]["index"] = json.dumps([row, *rows[1:]])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "odd.blsgan"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])
    with pytest.raises(InputError, match=r"odd\.blsgan: is damaged"):
        PackedDataset(path)
