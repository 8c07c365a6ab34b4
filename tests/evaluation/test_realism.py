"""The classifier on bones of which it is known whether they can be told apart."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from blsgan.data.visits import VisitTruth
from blsgan.evaluation.realism import classifier_auc, free_bone, read_once, realism_features
from blsgan.joint.distance import border_distance_px

SHAPE = 80, 90
BONES = 40


def test_what_cannot_be_told_apart_scores_a_half():
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 6))
    joints = [str(i // 2) for i in range(200)]
    found = classifier_auc(features[:200], joints, features[200:], joints)
    assert found.low < 0.5 < found.high


def test_a_known_shift_is_found():
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 6))
    features[:200, 2] += 1.5  # alone worth an AUC of 0.86
    joints = [str(i // 2) for i in range(200)]
    found = classifier_auc(features[:200], joints, features[200:], joints)
    assert found.mean == pytest.approx(0.86, abs=0.05)
    assert found.low < found.mean < found.high


def test_scores_that_are_equal_count_half():
    joints = [str(i) for i in range(10)]
    found = classifier_auc(np.zeros((10, 2)), joints, np.zeros((10, 2)), joints)
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)


def test_a_joint_that_is_known_by_heart_does_not_help():
    """Each joint has its own features: learning from its other bones would score 1."""
    random = np.random.default_rng(1)
    joints = [str(i // 10) for i in range(400)]
    features = np.repeat(random.normal(size=(40, 30)), 10, axis=0)
    found = classifier_auc(features[:200], joints[:200], features[200:], joints[200:])
    assert 0.2 < found.mean < 0.8


def test_two_joints_on_each_side_are_needed():
    with pytest.raises(ValueError, match="two joints"):
        classifier_auc(np.zeros((2, 3)), ["a", "a"], np.zeros((2, 3)), ["b", "c"])


@pytest.fixture(scope="module")
def place():
    """Mask of an upper bone, and the distance from the border of what a lower one hides of it."""
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, :70, 10:80] = True
    rows, columns = np.indices(SHAPE)
    masks[1] = (rows - 110) ** 2 + (columns - 45) ** 2 < 58**2
    return masks[0], border_distance_px(masks, 0)


def bones(seed, sharpness=1.0):
    """Bones of a texture like trabeculae, by levels and contrasts of their own."""
    random = np.random.default_rng(seed)
    for _ in range(BONES):
        grain = gaussian_filter(random.normal(size=SHAPE), sharpness)
        waves = gaussian_filter(random.normal(size=SHAPE), 6)
        level, contrast = random.uniform(0.3, 0.6), random.uniform(0.02, 0.05)
        yield level + contrast * (grain / grain.std() + waves / waves.std())


def score(place, layers, free):
    mask, distance_px = place
    features = [
        np.stack([realism_features(bone, mask, mask, distance_px) for bone in pictures])
        for pictures in (layers, free)
    ]
    joints = [str(i) for i in range(BONES)]
    return classifier_auc(features[0], joints, features[1], joints)


def test_bones_of_one_kind_score_a_half(place):
    found = score(place, bones(0), bones(1))
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.35


def test_a_line_along_the_other_bone_is_seen(place):
    """One pixel wide, as bright as the bone's texture varies."""
    _, distance_px = place
    line = (distance_px > 0) & (distance_px <= 1)
    found = score(place, [b + 0.05 * line for b in bones(0)], bones(1))
    assert found.mean > 0.9


def test_a_region_that_is_smoothed_is_seen(place):
    _, distance_px = place
    smooth = [np.where(distance_px < 0, gaussian_filter(b, 1.0), b) for b in bones(0)]
    assert score(place, smooth, bones(1)).mean > 0.9


def test_level_and_exposure_are_not_seen(place):
    """What lies on the other side of a fade may be brighter: that is anatomy, and error."""
    _, distance_px = place
    fade = 0.1 * np.clip(-np.nan_to_num(distance_px) / 20, -1, 1)
    found = score(place, [0.6 * b + 0.1 + fade for b in bones(0)], bones(1))
    assert found.low < 0.65


def test_pictures_read_once_are_as_soft_as_each_other(place):
    """What is read for a layer, at its place, is like what another visit's warp reads."""
    random = np.random.default_rng(5)
    sharp = list(bones(2, 0.7))
    at_place = [read_once(bone, random) for bone in sharp]
    shift = np.mean([(b - s)[20:60, 20:60].mean() for b, s in zip(at_place, sharp, strict=True)])
    assert abs(shift) < 1e-3
    correlation = [
        np.corrcoef(b[20:60, 20:60].ravel(), s[20:60, 20:60].ravel())[0, 1]
        for b, s in zip(at_place, sharp, strict=True)
    ]
    assert min(correlation) > 0.9  # it lies where it lay
    moved = [
        (1 - a) * (1 - b) * bone
        + (1 - a) * b * np.roll(bone, 1, 1)
        + a * (1 - b) * np.roll(bone, 1, 0)
        + a * b * np.roll(bone, 1, (0, 1))
        for bone in bones(3, 0.7)
        for a, b in [random.uniform(size=2)]
    ]
    fine = [
        np.mean([(p - gaussian_filter(p, 1))[10:70, 10:80].std() for p in pictures])
        for pictures in (sharp, at_place, moved)
    ]
    assert fine[1] == pytest.approx(fine[2], rel=0.1)
    assert fine[0] > 1.2 * fine[1]


def test_a_fitted_lines_loss_of_contrast_is_taken_back():
    random = np.random.default_rng(7)
    image, noise = random.normal(0.4, 0.05, (2, 60, 60))
    other = image + 0.6 * (noise - 0.4)  # the same bone, another visit's noise
    guide = np.ones((60, 60), bool)
    slope, offset = np.polyfit(other.ravel(), image.ravel(), 1)
    correlation = float(np.corrcoef(other.ravel(), image.ravel())[0, 1])
    mapped = (slope * other + offset).astype(np.float32)
    truth = VisitTruth(
        "j/a", "j/b", 0, mapped, guide, guide.astype(np.int16), guide, correlation, 0.0, 100
    )
    assert mapped.std() < 0.9 * image.std()
    assert free_bone(truth).std() == pytest.approx(image.std(), rel=1e-3)
    assert free_bone(truth).mean() == pytest.approx(image.mean(), rel=1e-3)


def test_a_small_region_has_no_features(place):
    mask, distance_px = place
    assert realism_features(np.zeros(SHAPE), mask, mask & (distance_px > 0), distance_px) is None
