"""Masks are predicted where there is a joint, and refused where there is none."""

import subprocess
import sys

import numpy as np
import pytest

import blsgan
from blsgan.errors import InputError, NoJointError, WeightsError
from blsgan.evaluation.segmentation import dice
from blsgan.joint.geometry import GRID_PX
from blsgan.synthesis.hand import hand_phantom
from blsgan.synthesis.phantoms import joint_phantom
from blsgan.tasks import segmentation
from blsgan.tasks.segmentation import Segmenter
from blsgan.tasks.task import WeightsFile


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained()


class Drawn:
    """A backend that answers given logits [2,256,256], and their mirror image for the second."""

    name, version = "drawn", "1"

    def __init__(self, logits, mirrored=None):
        mirrored = logits if mirrored is None else mirrored
        self.answer = np.stack((logits, mirrored[:, :, ::-1])).astype(np.float32)
        self.weights = WeightsFile("drawn", "drawn", None, "", b"")

    def run(self, *inputs):
        assert inputs[0].shape == (2, 1, GRID_PX, GRID_PX)
        return (self.answer,)


@pytest.fixture
def picture():
    return np.random.default_rng(0).random((GRID_PX, GRID_PX))


def logits(*boxes, level=8.0):
    """Logits of bones that are boxes (top, left, bottom, right), several for a bone in a list."""
    planes = np.full((2, GRID_PX, GRID_PX), -level)
    for plane, bone in zip(planes, boxes, strict=True):
        for top, left, bottom, right in bone if isinstance(bone, list) else [bone]:
            plane[top:bottom, left:right] = level
    return planes


UPPER, LOWER = (0, 60, 120, 200), (115, 70, 256, 190)


class TestPhantoms:
    @pytest.mark.parametrize("seed", range(6))
    def test_masks_are_right(self, segmenter, seed):
        phantom = joint_phantom(seed, overlap=seed % 2 == 0)
        found = segmenter(phantom.image)
        for predicted, drawn in zip(found.masks, phantom.masks, strict=True):
            assert dice(predicted, drawn) > 0.98
        if seed % 2 == 0:
            assert dice(found.overlap, phantom.overlap) > 0.65
        assert found.doubts == ()
        assert found.confidence.score > 0.5

    @pytest.mark.parametrize("size", [64, 93, 200, 210, 600])
    def test_any_size(self, segmenter, size):
        phantom = joint_phantom(3, size)
        found = segmenter(phantom.image)
        assert found.masks.shape == phantom.masks.shape
        for predicted, drawn in zip(found.masks, phantom.masks, strict=True):
            assert dice(predicted, drawn) > 0.98

    def test_a_large_picture_is_reduced_first(self, segmenter):
        phantom = joint_phantom(5)
        block = np.ones((9, 9), np.float32)
        found = segmenter(np.kron(phantom.image, block)[:, 400:])
        for predicted, drawn in zip(found.masks, phantom.masks, strict=True):
            assert dice(predicted, np.kron(drawn, block)[:, 400:] > 0) > 0.97

    def test_any_aspect_and_dtype(self, segmenter):
        phantom = joint_phantom(4, 512)
        image = np.rint(65535 * phantom.image[120:420, 40:]).astype(np.uint16)
        found = segmenter(image)
        for predicted, drawn in zip(found.masks, phantom.masks[:, 120:420, 40:], strict=True):
            assert dice(predicted, drawn) > 0.97

    def test_a_joint_that_is_small_in_the_picture_is_looked_at_again(self, segmenter):
        phantom = joint_phantom(3, 512)
        image = np.pad(phantom.image, ((180, 220), (250, 150)))
        masks = np.pad(phantom.masks, ((0, 0), (180, 220), (250, 150)))
        found = segmenter(image)
        assert found.scale > GRID_PX / max(image.shape)
        for predicted, drawn in zip(found.masks, masks, strict=True):
            assert dice(predicted, drawn) > 0.95

    def test_brightness_noise_and_a_mirror_do_not_matter(self, segmenter):
        phantom = joint_phantom(6)
        rng = np.random.default_rng(0)
        image = np.clip(0.6 * phantom.image + 0.2 + 0.02 * rng.standard_normal((256, 256)), 0, 1)
        found = segmenter(image[:, ::-1])
        for predicted, drawn in zip(found.masks, phantom.masks, strict=True):
            assert dice(predicted[:, ::-1], drawn) > 0.975

    def test_separation_takes_what_was_predicted(self, segmenter):
        phantom = joint_phantom(2)
        layers = blsgan.Separator.from_pretrained()(phantom.image, segmenter(phantom.image).masks)
        assert np.abs(layers.residual).max() < 1e-3


def texture(name):
    rng = np.random.default_rng([9, len(name)])
    if name == "white noise":
        return rng.random((256, 256))
    if name == "coarse noise":
        return np.kron(rng.random((32, 32)), np.ones((8, 8)))
    if name == "one over f":
        frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
        frequency[0, 0] = np.inf
        plane = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((256, 256))) / frequency)
        return np.clip(0.5 + 0.2 * plane / plane.std(), 0, 1)
    if name == "empty field":
        return np.full((256, 256), 0.4)
    if name == "empty field with grain":
        return np.clip(0.4 + 0.01 * rng.standard_normal((256, 256)), 0, 1)
    if name == "gradient":
        return np.tile(np.linspace(0, 1, 300), (200, 1))
    from skimage import data

    picture = getattr(data, name)()
    return (picture if picture.ndim == 2 else picture[..., :3].mean(axis=-1)) / 255


@pytest.mark.parametrize(
    "name",
    [
        "white noise",
        "coarse noise",
        "one over f",
        "empty field",
        "empty field with grain",
        "gradient",
        "astronaut",
        "brick",
        "camera",
        "cat",
        "coffee",
        "coins",
        "grass",
        "gravel",
        "moon",
        "page",
        "rocket",
        "text",
    ],
)
def test_what_is_no_joint_is_refused(segmenter, name):
    with pytest.raises(NoJointError):
        segmenter(texture(name))


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_hand_is_refused(segmenter, seed):
    with pytest.raises(NoJointError):
        segmenter(hand_phantom(seed, 300))


def test_many_joints_are_refused(segmenter):
    joints = np.block(
        [[joint_phantom(3 * row + column, 128).image for column in range(3)] for row in range(3)]
    )
    with pytest.raises(NoJointError):
        segmenter(joints)


@pytest.mark.parametrize("part", [np.s_[:90], np.s_[170:]], ids=["upper", "lower"])
def test_a_single_bone_is_refused(segmenter, part):
    with pytest.raises(NoJointError):
        segmenter(joint_phantom(1, overlap=False).image[part])


class TestJudgement:
    """What is refused and doubted, with logits drawn by hand."""

    def found(self, answer, picture, mirrored=None):
        return Segmenter(Drawn(answer, mirrored))(picture)

    def test_clear_bones(self, picture):
        found = self.found(logits(UPPER, LOWER), picture)
        assert found.doubts == ()
        assert found.overlap.sum() == 5 * 120
        confidence = found.confidence
        assert (confidence.flip_agreement, confidence.stray, confidence.gap) == (1, 0, 0)
        assert confidence.border_entropy < 0.01
        assert confidence.score > 0.99
        assert confidence.overlap == pytest.approx(600 / (120 * 140))
        assert confidence.width_ratio == pytest.approx(140 / 120)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (logits((0, 0, 0, 0), (0, 0, 0, 0)), "no bones were found"),
            (logits(UPPER, (0, 0, 0, 0)), "only the upper bone was found, not the lower one"),
            (logits((0, 0, 0, 0), LOWER), "only the lower bone was found, not the upper one"),
            (logits(LOWER, UPPER), "upside down"),
            (logits((0, 60, 60, 200), (150, 70, 256, 190)), "do not meet"),
            (logits((40, 60, 200, 200), (60, 70, 200, 190)), "both masks show one bone"),
            (logits([(0, 60, 60, 200), (70, 60, 120, 200)], LOWER), "in pieces"),
            (logits((0, 20, 120, 240), (115, 100, 256, 140)), "times as wide"),
            (logits(UPPER, LOWER, level=0.3), "no border is clear"),
        ],
    )
    def test_refusals_say_why(self, picture, answer, message):
        with pytest.raises(NoJointError, match=message):
            self.found(answer, picture)

    def test_a_mirror_image_that_shows_something_else(self, picture):
        moved = logits((0, 110, 120, 250), (115, 120, 256, 240))
        with pytest.raises(NoJointError, match="mirror image gave other bones"):
            self.found(logits(UPPER, LOWER), picture, moved)

    @pytest.mark.parametrize(
        ("answer", "mirrored", "doubt"),
        [
            (logits((0, 60, 90, 200), LOWER), None, "far apart"),
            (logits([UPPER, (200, 10, 240, 40)], LOWER), None, "several pieces"),
            (logits(UPPER, LOWER), logits((0, 70, 120, 210), (115, 80, 256, 200)), "mirror image"),
            (logits((0, 20, 120, 240), LOWER), None, "differ much in width"),
        ],
    )
    def test_doubts_are_said_and_masks_given(self, picture, answer, mirrored, doubt):
        found = self.found(answer, picture, mirrored)
        assert len(found.doubts) == 1
        assert doubt in found.doubts[0]

    def test_stray_pieces_and_holes_do_not_reach_the_masks(self, picture):
        answer = logits([UPPER, (200, 10, 210, 20)], LOWER)
        answer[1, 180:184, 100:104] = -8
        found = self.found(answer, picture)
        assert not found.upper[200:210, 10:20].any()
        assert found.lower[180:184, 100:104].all()

    def test_no_masks_from_weights_gone_wrong(self, picture):
        with pytest.raises(WeightsError, match="NaN"):
            self.found(np.full((2, GRID_PX, GRID_PX), np.nan), picture)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 8)), "shape"),
        (np.zeros((0, 8)), "shape"),
        (np.full((8, 8), np.nan), "NaN"),
        (np.array([[0.0, 2.0], [1.0, 1.0]]), "outside"),
        (np.zeros((8, 8), np.int64), "dtype"),
    ],
)
def test_images_that_cannot_be_used(segmenter, image, message):
    with pytest.raises(InputError, match=message):
        segmenter(image)


def test_full_resolution_is_where_the_grid_says():
    """A window whose grid pixels are 4x4 image pixels: a border between grid pixels stays put."""
    window = segmentation._square(0, 0, 4 * GRID_PX)
    planes = np.full((2, GRID_PX, GRID_PX), -1, np.float32)
    planes[:, :100, 50:] = 1
    full = segmentation._at_full_resolution([(window, planes)], (4 * GRID_PX, 4 * GRID_PX)) > 0
    expected = np.zeros_like(full[0])
    expected[:400, 200:] = True
    differs = np.argwhere(full[0] != expected)  # the corner of the bone is rounded
    assert len(differs) <= 4
    assert (np.abs(differs - (399, 200)) <= 2).all()


def test_segmenting_imports_no_torch():
    code = (
        "import sys, blsgan\n"
        "from blsgan.synthesis.phantoms import joint_phantom\n"
        "blsgan.Segmenter.from_pretrained()(joint_phantom(0).image)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "False"
