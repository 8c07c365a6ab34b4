"""The locator around its network: heatmaps read, views turned, hands refused."""

import math

import numpy as np
import pytest

from blsgan.anatomy import LANDMARKS
from blsgan.errors import InputError, NoHandError, WeightsError
from blsgan.joint.geometry import HEATMAP_PX, LOOK_PX
from blsgan.synthesis.hand import marked_hand_phantom
from blsgan.tasks import joints
from blsgan.tasks.joints import Locator, decode_heatmaps
from blsgan.tasks.task import WeightsFile


class Answer:
    """A backend that gives the same logits to every look."""

    name, version = "fake", "0"

    def __init__(self, logits, tmp_path) -> None:
        self.logits = logits
        self.weights = WeightsFile("fake", "locator", tmp_path / "fake.onnx", "0" * 64, b"")

    def run(self, image):
        assert image.shape == (1, 1, LOOK_PX, LOOK_PX)
        assert image.dtype == np.float32
        return (self.logits,)


def nothing() -> np.ndarray:
    return np.full((1, len(LANDMARKS), HEATMAP_PX, HEATMAP_PX), -20.0, np.float32)


def test_a_heatmap_is_read_between_its_cells():
    y, x = np.mgrid[:HEATMAP_PX, :HEATMAP_PX]
    sharp = 12 - 0.5 * ((x - 30.3) ** 2 + (y - 61.8) ** 2)
    flat = np.full_like(sharp, -30.0)
    points, confidences = decode_heatmaps(np.stack((sharp, flat)).astype(np.float32))
    assert points[0] == pytest.approx((30.3, 61.8), abs=0.01)
    assert confidences[0] > 0.99
    assert confidences[1] < 1e-6


def test_a_heatmap_at_the_corner_is_read():
    logits = np.full((1, HEATMAP_PX, HEATMAP_PX), -30.0, np.float32)
    logits[0, 0, HEATMAP_PX - 1] = 10
    points, confidences = decode_heatmaps(logits)
    assert points[0] == pytest.approx((HEATMAP_PX - 1, 0))
    assert confidences[0] > 0.99


@pytest.mark.parametrize("degrees", [0, 45, 200])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_view_shows_what_it_says(degrees, mirrored):
    image = np.zeros((600, 900), np.float32)
    image[148:153, 398:403] = 1
    view = joints._View((500.0, 260.0), 700.0, degrees, mirrored)
    shown = joints._Picture.of(image).show(view)
    row, column = np.unravel_index(int(shown.argmax()), shown.shape)
    matrix = view.to_picture()
    place = matrix[:, :2] @ np.array([column, row]) + matrix[:, 2]
    assert math.dist(place, (400.0, 150.0)) < 6


def test_a_picture_without_a_hand_is_refused(tmp_path):
    image = np.random.default_rng(0).random((300, 200)).astype(np.float32)
    with pytest.raises(NoHandError, match=r"confidence 0\.00"):
        Locator(Answer(nothing(), tmp_path))(image)


@pytest.mark.parametrize(("side", "looks"), [(256, 16), (400, 16 + 4 * 8)])
def test_halves_too_small_for_a_hand_are_not_looked_at(side, looks, tmp_path):
    backend = Answer(nothing(), tmp_path)
    seen = []
    run = backend.run
    backend.run = lambda image: seen.append(image) or run(image)
    with pytest.raises(NoHandError):
        Locator(backend)(np.random.default_rng(0).random((side, side)).astype(np.float32))
    assert len(seen) == looks


def test_answers_that_are_none_are_refused(tmp_path):
    image = np.random.default_rng(0).random((300, 200)).astype(np.float32)
    with pytest.raises(WeightsError, match="NaN"):
        Locator(Answer(nothing() * np.nan, tmp_path))(image)
    with pytest.raises(WeightsError, match="shape"):
        Locator(Answer(nothing()[:, :3], tmp_path))(image)


@pytest.mark.parametrize("shape", [(300,), (3, 300, 300), (8, 300), (0, 0)])
def test_what_is_no_picture_is_refused(shape, tmp_path):
    with pytest.raises(InputError, match="shape"):
        Locator(Answer(nothing(), tmp_path))(np.zeros(shape, np.float32))


def test_the_side_is_the_thumbs():
    _, points = marked_hand_phantom(1, 512)
    points = np.where(np.isnan(points), 0, points)
    view = joints._View((256.0, 256.0), 512.0)
    sure = np.ones(len(LANDMARKS))
    right = joints._hand(joints._Look(view, points, sure))
    assert right.side == "right"  # its thumb lies to the left of upright fingers
    mirrored = points * np.array([-1.0, 1.0]) + np.array([511.0, 0.0])
    assert joints._hand(joints._Look(view, mirrored, sure)).side == "left"
    turned = np.stack((511 - points[:, 0], 511 - points[:, 1]), axis=1)
    upside_down = joints._hand(joints._Look(view, turned, sure))
    assert upside_down.side == "right"
    assert abs(abs(upside_down.turned_deg) - 180) < 20
