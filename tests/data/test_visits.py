"""A truth from another visit is the bone without the other bone's blurred edge."""

import cv2
import numpy as np
import pytest

from blsgan.data.layout import JointArrays
from blsgan.data.visits import LOWER, NEAREST_PX, TRAINING, UPPER, edge_light, match

SIDE = 128
END = {UPPER: 84, LOWER: 44}  # rows where either bone ends at the joint


def _masks(bone, other_moved):
    """Two bones that overlap, the other one moved off by so many rows."""
    row = np.arange(SIDE)[:, None]
    column = np.abs(np.arange(SIDE)[None] - SIDE / 2)
    moved = {bone: 0, 1 - bone: -other_moved if bone == LOWER else other_moved}
    upper = (row < END[UPPER] + moved[UPPER]) & (column < 40)
    lower = (row >= END[LOWER] + moved[LOWER]) & (column < 40)
    return np.stack((upper, lower))


def _texture():
    noise = np.random.default_rng(3).normal(size=(SIDE, SIDE))
    return np.clip(0.55 + 0.8 * cv2.GaussianBlur(noise, (0, 0), 3), 0.3, 0.8).astype(np.float32)


def _arrays(picture, masks):
    seen = np.where(masks.any(axis=0), picture, 0.2)
    return JointArrays(np.rint(255 * seen).astype(np.uint8), masks, None)


@pytest.mark.parametrize("bone", [UPPER, LOWER])
def test_the_edge_beside_a_bone_is_taken_off(bone):
    texture = _texture()
    hidden, shown = _masks(bone, 0), _masks(bone, 24)
    away = cv2.distanceTransform((~shown[1 - bone]).astype(np.uint8), cv2.DIST_L2, 5)
    with_edge = texture + edge_light(bone, away)
    a, b = _arrays(texture, hidden), _arrays(with_edge, shown)
    found = match("A", a, "B", b, bone, TRAINING)
    assert found is not None
    near = found.valid & (away <= 3)
    assert near.sum() > 50
    assert (with_edge - texture)[near].mean() > 0.015
    assert abs((found.truth - texture)[near].mean()) < 0.004
    assert abs((found.truth - texture)[found.valid & (away > 6)]).mean() < 0.004


@pytest.mark.parametrize("bone", [UPPER, LOWER])
def test_pixels_next_to_the_other_bone_tell_nothing(bone):
    hidden, shown = _masks(bone, 0), _masks(bone, 24)
    away = cv2.distanceTransform((~shown[1 - bone]).astype(np.uint8), cv2.DIST_L2, 5)
    found = match("A", _arrays(_texture(), hidden), "B", _arrays(_texture(), shown), bone, TRAINING)
    assert found is not None
    touching = (away > 0) & (away <= NEAREST_PX) & hidden.all(axis=0)
    assert touching.any()
    assert not found.clear_px[touching].any()
    assert not found.valid[touching].any()


def test_the_edge_fades_with_the_distance():
    light = [edge_light(bone, np.arange(8)) for bone in (UPPER, LOWER)]
    for fading in light:
        assert fading.dtype == np.float32
        assert (np.diff(fading) < 0).all()
        assert fading[7] < 1e-3
    assert (light[UPPER][:3] > light[LOWER][:3]).all()
