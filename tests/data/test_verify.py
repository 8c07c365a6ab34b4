"""Every fault that a dataset can have is found, and a sound one has none."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from blsgan.data.dataset import load_root
from blsgan.data.splits import is_validation
from blsgan.data.verify import verify
from blsgan.errors import InputError

LIST = "LS_K1_all_train"


@pytest.fixture
def root(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "Data")
    return tmp_path / "Data"


def entries(root, name=LIST):
    return json.loads((root / name).read_text())


def write(root, listed, name=LIST):
    (root / name).write_text(json.dumps(listed))


def save(array, path, **options):
    with path.open("wb") as file:
        Image.fromarray(array).save(file, format=options.pop("format", "PNG"), **options)


def faults(root):
    return [(f.severity, f.kind, f.where, f.text) for f in verify(root).findings]


def only(root):
    (fault,) = faults(root)
    return fault


def test_a_sound_dataset_has_no_fault_and_is_counted(dataset):
    report = verify(dataset)
    assert report.findings == []
    counts = report.counts
    assert (counts["images"], counts["joints"]) == (8, 4)
    assert counts["joints_by_visits"] == {"2": 4}
    assert (counts["with_overlap"], counts["without_overlap"]) == (4, 4)
    assert counts["sizes_px"] == {"256x256": 8}
    assert counts["split"] == {
        "train": {"images": 2, "joints": 1},
        "val": {"images": 6, "joints": 3},
    }
    assert counts["files_not_listed"] == 0
    assert counts["lists"] == {LIST: 8}


def test_what_is_no_dataset_is_one_sentence(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=str(folder)):
            verify(folder)


@pytest.mark.parametrize("key", ["image", "upper", "lower", "background"])
def test_a_missing_file(root, key):
    entry = entries(root)[0]
    (root / entry[key]).unlink()
    severity, kind, where, text = only(root)
    assert (severity, kind) == ("error", "missing")
    assert where.split("/")[0] in entry["image"]
    assert f"{key}: " in text


@pytest.mark.parametrize("key", ["image", "upper", "background"])
def test_a_damaged_file(root, key):
    path = root / entries(root)[0][key]
    path.write_bytes(path.read_bytes()[:300])
    severity, kind, _, text = only(root)
    assert (severity, kind) == ("error", "unreadable")
    assert path.name in text


def test_a_16_bit_image(root):
    save(np.full((256, 256), 30000, np.uint16), root / entries(root)[0]["image"])
    assert "16 bits" in only(root)[3]


@pytest.mark.parametrize("key", ["upper", "background"])
def test_another_size_than_the_image(root, key):
    pixels = np.zeros((128, 200), np.uint8)
    pixels[20:40] = 255
    save(pixels, root / entries(root)[0][key])
    severity, kind, _, text = only(root)
    assert (severity, kind) == ("error", "size")
    assert "200x128 px, the image 256x256 px" in text


def test_mixed_sizes_are_named(root):
    for key, path in entries(root)[0].items():
        with Image.open(root / path) as picture:
            smaller = np.asarray(picture.resize((192, 192), Image.Resampling.NEAREST))
        save(smaller, root / path, format="BMP" if key in ("upper", "lower") else "PNG")
    severity, kind, _, text = only(root)
    assert (severity, kind) == ("error", "mixed sizes")
    assert "256x256 (7" in text
    assert "192x192 (1" in text


def test_an_empty_mask_and_one_that_is_none(root):
    first, second = entries(root)[:2]
    save(np.zeros((256, 256), np.uint8), root / first["upper"])
    (root / second["lower"]).write_bytes((root / second["image"]).read_bytes())
    found = faults(root)
    assert [f[:2] for f in found] == [("error", "mask")] * 2
    assert "upper" in found[0][3]
    assert "is empty" in found[0][3]
    assert "not a black and white mask" in found[1][3]


def test_a_mask_with_soft_edges_is_a_warning(root):
    path = root / entries(root)[0]["upper"]
    mask = np.asarray(Image.open(path)).copy()
    row = np.flatnonzero(mask.any(axis=1))[-1]
    mask[row][mask[row] > 0] = 200
    save(mask, path)
    severity, kind, _, text = only(root)
    assert (severity, kind) == ("warning", "soft mask")
    assert "1 grey level" in text


def test_exchanged_masks_and_one_bone_twice(root):
    first, second = entries(root)[:2]
    upper, lower = root / first["upper"], root / first["lower"]
    spare = upper.with_name("spare")
    upper.rename(spare)
    lower.rename(upper)
    spare.rename(lower)
    shutil.copy(root / second["upper"], root / second["lower"])
    found = faults(root)
    assert [f[:2] for f in found] == [("error", "bones")] * 2
    assert "swapped" in found[0][3]
    assert "one bone" in found[1][3]


def test_an_entry_without_a_mask(root):
    listed = entries(root)
    del listed[3]["lower"]
    write(root, listed)
    severity, kind, where, text = only(root)
    assert (severity, kind, where) == ("error", "entry", LIST)
    assert text == f"{listed[3]['image']} names no lower"


def test_an_entry_without_a_background_is_a_warning(root):
    listed = entries(root)
    (root / listed[0].pop("background")).unlink()
    write(root, listed)
    severity, kind, where, _ = only(root)
    assert (severity, kind) == ("warning", "background")
    assert where == listed[0]["image"].removeprefix("Dataset_cases_anonymization/")[:-4]


@pytest.mark.parametrize("outside", ["/etc/hostname", "../other/a.jpg", "a/../../b.jpg"])
def test_a_path_out_of_the_dataset(root, outside):
    listed = entries(root)
    listed[0]["upper"] = outside
    write(root, listed)
    severity, kind, _, text = only(root)
    assert (severity, kind) == ("error", "entry")
    assert outside in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("{}", "not a JSON list"),
        ("[3]", "entry 0"),
        ("[]", "no image"),
        ("[" * 100_000, "not JSON"),
        ("", "empty"),
    ],
)
def test_a_list_that_is_none_does_not_hide_the_others(root, text, words):
    (root / "LS_K1_other_train").write_text(text)
    report = verify(root)
    assert words in report.findings[0].text
    assert report.counts["images"] == 8


def test_an_entry_twice_and_one_with_other_files(root):
    listed = entries(root)
    write(root, [*listed, listed[0]])
    assert only(root)[:2] == ("warning", "repeated")
    write(root, listed)
    write(root, [{**listed[0], "lower": listed[1]["lower"]}], "LS_K1_overlap_train")
    severity, kind, _, text = only(root)
    assert (severity, kind) == ("error", "entry")
    assert "lower: " in text


def test_overlap_lists_that_contradict_the_masks(root):
    write(root, entries(root), "LS_K1_nonoverlap_train")
    found = faults(root)
    assert {f[:2] for f in found} == {("warning", "overlap list")}
    assert len(found) == 4


def test_duplicates_within_a_joint_across_joints_and_across_the_split(root):
    images = load_root(root)
    validation = [i for i in images if is_validation(i.joint)]
    training = [i for i in images if not is_validation(i.joint)]
    pairs = [
        (training[0], training[1]),
        (validation[0], validation[2]),
        (validation[4], training[0]),
    ]
    expected = [("warning", "duplicate"), ("error", "duplicate"), ("error", "leak")]
    for (source, target), kind in zip(pairs, expected, strict=True):
        before = target.image.read_bytes()
        # Saved again in another format: other bytes, the same pixels.
        save(np.asarray(Image.open(source.image)), target.image)
        assert only(root)[:2] == kind
        target.image.write_bytes(before)


def test_a_joint_in_two_parts_of_a_fold(root):
    listed = entries(root)
    write(root, listed[:2], "LS_K1_all_test")
    joint = listed[0]["image"].split("/")[1]
    severity, kind, where, text = only(root)
    assert (severity, kind, where) == ("error", "leak", joint)
    assert text == "is in test and in train of fold K1"
    # Another fold may do as it likes: its training part is this one's test part.
    (root / "LS_K1_all_test").rename(root / "LS_K2_all_test")
    assert faults(root) == []


def test_test_joints_that_training_would_take(root):
    listed = entries(root)
    training = [e for e in listed if not is_validation(e["image"].split("/")[1])]
    write(root, [e for e in listed if e not in training])
    write(root, training, "LS_K1_all_test")
    severity, kind, where, text = only(root)
    assert (severity, kind, where) == ("warning", "split", "fold K1")
    assert text.startswith("1 joints of its test lists")


def pair(fixed, moving, joint=None):
    short = {
        key: {
            part: path.removeprefix("Dataset_cases_anonymization/") for part, path in entry.items()
        }
        for key, entry in (("fixed", fixed), ("moving", moving))
    }
    return {
        "joint_name": joint or short["fixed"]["image"].split("/")[0],
        **{key: entry["image"] for key, entry in short.items()},
        **{
            f"{key}_{bone}": entry[bone]
            for key, entry in short.items()
            for bone in ("upper", "lower")
        },
    }


def test_follow_up_pairs(root):
    listed = entries(root)
    name = "DR_K1_train"
    write(root, [pair(listed[0], listed[1])], name)
    assert faults(root) == []
    assert verify(root).counts["follow_up_pairs"] == 1

    write(root, [pair(listed[0], listed[1])] * 3, name)
    assert only(root)[3] == "2 of its 3 pairs repeat an earlier one"
    write(root, [pair(listed[0], listed[2])], name)
    assert "pairs different joints" in only(root)[3]
    write(root, [pair(listed[0], listed[0])], name)
    assert only(root)[:2] == ("warning", "pair")
    write(root, [{"fixed": "a.jpg"}], name)
    assert "entry 0 names no fixed_upper" in only(root)[3]

    gone = pair(listed[0], listed[1])
    gone["moving"] = "nowhere/none.jpg"
    write(root, [gone], name)
    assert any("nowhere/none.jpg is not there" in text for *_, text in faults(root))
    write(root, [pair(listed[0], listed[1])], name)
    write(root, listed[1:])
    assert any("is in no LS list" in text for *_, text in faults(root))
