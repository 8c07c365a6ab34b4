"""The classifier on bones of which it is known whether they can be told apart."""

import numpy as np
import pytest

from blsgan.evaluation.realism import auc, classifier_auc, laid_over, realism_features


def test_auc_is_the_share_of_pairs_in_order():
    assert auc([2, 3], [0, 1]) == 1
    assert auc([0, 1], [2, 3]) == 0
    assert auc([1, 1], [1, 1]) == 0.5
    assert auc([0, 2], [1]) == 0.5


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


@pytest.fixture
def masks():
    masks = np.zeros((2, 160, 160), bool)
    masks[0, :90, 20:140] = True
    masks[1, 100:, 20:140] = True
    return masks


def test_another_joints_outline_is_laid_where_the_ends_meet(masks):
    donor = np.zeros((2, 160, 160), bool)
    donor[0, :80, 20:140] = True
    donor[1, 70:, 40:120] = True  # hides ten rows of the upper bone's end
    region = laid_over(masks, donor, 0)
    rows, columns = np.nonzero(region)
    assert (rows.min(), rows.max()) == (80, 89)
    assert (columns.min(), columns.max()) == (40, 119)


def test_features_see_a_line_and_not_the_level(masks):
    random = np.random.default_rng(2)
    bone = random.normal(0.4, 0.02, (160, 160))
    region = masks[0] & (np.indices((160, 160))[0] >= 75)
    plain = realism_features(bone, masks[0], region)
    brighter = realism_features(bone + 0.1, masks[0], region)
    bone[74] += 0.1
    line = realism_features(bone, masks[0], region)
    assert np.abs(line - plain).max() > 5 * np.abs(brighter - plain).max()


def test_a_small_region_has_no_features(masks):
    assert realism_features(np.zeros((160, 160)), masks[0], np.zeros((160, 160), bool)) is None
