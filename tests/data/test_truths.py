"""The registration is found once, and only ever reused for the very same files."""

import shutil

import cv2
import numpy as np
import pytest

from blsgan.data import truths
from blsgan.data.dataset import load_root
from blsgan.data.layout import by_joint, read_joint
from blsgan.data.truths import cached_visit_truths, registration_key
from blsgan.data.visits import RING_PX
from blsgan.errors import InputError


def refuse(*ignored):
    raise AssertionError("registered again")


@pytest.fixture(scope="module")
def joint(images):
    """The visits of one joint: enough for two comparisons."""
    return [image for image in images if image.joint == images[0].joint]


@pytest.fixture
def cached(joint, tmp_path):
    return cached_visit_truths(joint, tmp_path)


def test_second_call_reads_what_the_first_found(cached, joint, tmp_path, monkeypatch):
    assert cached
    monkeypatch.setattr(truths, "visit_truths", refuse)
    again = cached_visit_truths(joint, tmp_path)
    assert len(again) == len(cached)
    for a, b in zip(cached, again, strict=True):
        assert (a.image, a.other, a.bone) == (b.image, b.other, b.bone)
        assert (a.correlation, a.floor_mse) == (b.correlation, b.floor_mse)
        for name in ("truth", "valid", "clear_px", "guide"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_without_a_folder_the_result_is_the_same(cached, joint):
    fresh = cached_visit_truths(joint, None)
    for a, b in zip(cached, fresh, strict=True):
        np.testing.assert_array_equal(a.truth, b.truth)


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_is_made_again(cached, joint, tmp_path, damage):
    (path,) = tmp_path.glob("registration/*.npz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    again = cached_visit_truths(joint, tmp_path)
    assert len(again) == len(cached)
    assert path.stat().st_size > 1000


def test_the_key_follows_the_pixels(dataset, joint, tmp_path):
    key = registration_key(joint)
    assert key == registration_key(joint)
    assert key != registration_key(joint[:1])
    copy = tmp_path / "Data"
    shutil.copytree(dataset, copy)
    moved = [image for image in load_root(copy) if image.joint == joint[0].joint]
    assert registration_key(moved) == key
    moved[0].image.write_bytes(moved[1].image.read_bytes())
    assert registration_key(moved) != key
    moved[0].image.unlink()
    with pytest.raises(InputError, match=moved[0].image.name):
        registration_key(moved)


def test_clear_pixels_are_the_truths_and_those_beside_the_overlap(cached, joint):
    masks = {image.name: read_joint(image).masks for image in joint}
    for truth in cached:
        overlap = masks[truth.image][0] & masks[truth.image][1]
        np.testing.assert_array_equal((truth.clear_px > 0) & overlap, truth.valid)
        beside = (truth.clear_px > 0) & ~overlap
        assert beside.any()
        reach = cv2.distanceTransform((~overlap).astype(np.uint8), cv2.DIST_L2, 5)
        assert 7 <= reach[beside].max() <= RING_PX
        assert truth.truth[beside].min() > 0


def test_a_start_that_was_killed_loses_no_joint(images, tmp_path, monkeypatch):
    """Joint by joint it is kept, and counted."""
    joints = list(by_joint(images).values())
    assert len(joints) >= 2
    whole = cached_visit_truths(images, None)
    find, registered = truths.visit_truths, []

    def killed_at_the_second(visits, thresholds):
        if len(registered) == 1:
            raise KeyboardInterrupt
        registered.append(visits[0].joint)
        return find(visits, thresholds)

    monkeypatch.setattr(truths, "visit_truths", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        cached_visit_truths(images, tmp_path)

    def others(visits, thresholds):
        assert visits[0].joint not in registered
        return find(visits, thresholds)

    monkeypatch.setattr(truths, "visit_truths", others)
    counted = []

    def progress(items, label, total):
        for item in items:
            counted.append((label, total))
            yield item

    again = cached_visit_truths(images, tmp_path, progress=progress)
    assert counted == [("registering visits", len(joints))] * len(joints)
    several = [j for j in joints if len(j) > 1]
    assert len(list(tmp_path.glob("registration/*.npz"))) == len(several)
    assert [(t.image, t.other, t.bone) for t in again] == [
        (t.image, t.other, t.bone) for t in whole
    ]
    for a, b in zip(again, whole, strict=True):
        np.testing.assert_array_equal(a.truth, b.truth)
