"""A picture of several joints taken apart, on phantoms; the locator's part is given."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from blsgan.anatomy import JOINTS, LANDMARKS
from blsgan.hands.chain import Crop, HandSeparator, _mostly_refused
from blsgan.hands.growth import CLOSING_PLATE, OPEN_PLATE, growth_plate
from blsgan.hands.picture import draw_overview, put_back
from blsgan.synthesis.phantoms import joint_phantom
from blsgan.tasks.joints import LocatedHand
from blsgan.tasks.segmentation import Segmenter
from blsgan.tasks.separation import Separator

SHAPE = (620, 1500)
WIDTH_PX = 160.0
PLACES = {
    "mcp2": (220.0, -14.0),
    "mcp3": (560.0, 6.0),
    "mcp4": (910.0, -4.0),
    "mcp5": (1260.0, 18.0),
}


class Given:
    """A locator that knows."""

    def __init__(self, hand: LocatedHand) -> None:
        self.hand = hand

    def __call__(self, image):
        return [self.hand]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Four joint phantoms side by side, each turned by its own angle about its joint."""
    canvas = np.zeros(SHAPE, np.float32)
    for seed, (x, degrees) in enumerate(PLACES.values(), start=1):
        angle = math.radians(degrees)
        linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        centre = np.array([x, SHAPE[0] / 2])
        matrix = np.column_stack((linear, centre - linear @ np.full(2, 127.5)))
        turned = cv2.warpAffine(joint_phantom(seed).image, matrix, SHAPE[::-1])
        canvas = np.maximum(canvas, turned)
    return canvas


def located(shift: float = 0.0, turn: float = 0.0, **changes: tuple[float, float]) -> LocatedHand:
    """Landmarks of :data:`PLACES`, off by ``shift`` px and ``turn`` degrees."""
    points = {name: np.array([0.0, 0.0]) for name in LANDMARKS}
    confidences = dict.fromkeys(LANDMARKS, 0.0)
    for name, (x, degrees) in PLACES.items():
        angle = math.radians(degrees + turn)
        points[name] = np.array([x + shift, SHAPE[0] / 2 - shift])
        beyond = points[name] + WIDTH_PX / 0.3 * np.array([math.sin(angle), -math.cos(angle)])
        points[name.replace("mcp", "pip")] = beyond
        confidences[name] = 0.95
    for name, (x, y) in changes.items():
        points[name] = np.array([x, y])
    return LocatedHand(
        np.stack([points[name] for name in LANDMARKS]),
        np.array([confidences[name] for name in LANDMARKS]),
        "left",
        0.0,
    )


@pytest.fixture(scope="module")
def networks():
    return Segmenter.from_pretrained(threads=1), Separator.from_pretrained(threads=1)


def test_joints_are_found_upright_whatever_the_locator_missed_by(picture, networks):
    exact = HandSeparator(Given(located()), *networks)(picture)[0]
    off = HandSeparator(Given(located(shift=20.0, turn=8.0)), *networks)(picture)[0]
    for name, (x, degrees) in PLACES.items():
        for joint in (exact[name], off[name]):
            assert joint.segmentation is not None, (name, joint.reasons)
            assert math.dist(joint.crop.centre, (x, SHAPE[0] / 2)) < 0.15 * WIDTH_PX
            assert abs(joint.crop.degrees - degrees) < 5
        assert math.dist(exact[name].crop.centre, off[name].crop.centre) < 0.03 * WIDTH_PX
    missing = [joint for joint in exact.joints if joint.name not in PLACES]
    assert {joint.status for joint in missing} == {"refused"}
    assert all("not found" in joint.reasons[0] for joint in missing)
    assert [joint.name for joint in exact.joints] == list(JOINTS)

    planes = put_back(exact, picture.shape)
    assert planes["upper_mask"].any(axis=0).nonzero()[0].max() > 1200
    inside = planes["upper_mask"] & ~planes["lower_mask"]
    # Outside the overlap a layer is the picture, here after two resamplings.
    assert np.abs(planes["upper"] - picture)[inside].mean() < 0.02
    page = draw_overview(picture, exact, "caption")
    assert page.size[0] == 1600


def test_two_joints_on_one_place_are_one(picture, networks):
    x, y = PLACES["mcp3"][0] + 45.0, SHAPE[0] / 2
    hand = located(mcp4=(x, y), pip4=(x, y - WIDTH_PX / 0.3))
    found = HandSeparator(Given(hand), *networks)(picture)[0]
    assert found["mcp4"].status == "refused"
    assert found["mcp3"].status == "doubtful"
    assert found["mcp4"].segmentation is None


@pytest.mark.parametrize(("apart", "doubted"), [(0.30, True), (0.40, False)])
def test_neighbours_nearly_on_one_place_make_the_names_of_fingers_doubtful(
    apart, doubted, picture, networks
):
    x, y = PLACES["mcp3"][0] + apart * WIDTH_PX / 0.3, SHAPE[0] / 2
    found = HandSeparator(Given(located(mcp4=(x, y))), *networks).masks(picture)[0]
    for name in ("mcp2", "mcp5"):
        assert found[name].segmentation is not None
        assert found[name].status == "doubtful" or not doubted
        assert any("names may be wrong" in reason for reason in found[name].reasons) == doubted


def test_a_joint_whose_finger_is_cut_off_is_taken_apart_and_what_is_missing_named(
    picture, networks
):
    x, degrees = PLACES["mcp3"]
    y, angle = SHAPE[0] / 2, math.radians(degrees)
    whole = located(cmc3=(x - 300 * math.sin(angle), y + 300 * math.cos(angle)))
    # The locator has nowhere to put PIP 3 but on MCP 3, and PIP 4 but on MCP 2.
    points, sure = whole.points.copy(), whole.confidences.copy()
    for name, place in (("pip3", (x + 2, y)), ("pip4", (PLACES["mcp2"][0], y - 3))):
        points[LANDMARKS.index(name)] = place
        sure[LANDMARKS.index(name)] = 0.8
    for name in ("pip2", "pip5", "cmc3"):
        sure[LANDMARKS.index(name)] = 0.9
    hand = LocatedHand(points, sure, "left", 0.0)
    found = HandSeparator(Given(hand), *networks).masks(picture)[0]
    for name in ("mcp2", "mcp3", "mcp5"):
        assert found[name].segmentation is not None, found[name].reasons
        assert abs(found[name].crop.degrees - PLACES[name][1]) < 5
    for name in ("pip3", "pip4"):
        assert "not found" in found[name].reasons[0]


def test_bones_that_are_displaced_against_each_other_are_doubted(picture, networks):
    x, degrees = PLACES["mcp3"]
    straight = Crop((x, SHAPE[0] / 2), degrees, 400).cut(picture)
    displaced = straight.copy()
    displaced[204:] = np.roll(straight[204:], 40, axis=1)  # below the joint line: a quarter width
    hand = alone(199.5, 199.5)
    for image, subluxed in ((straight, False), (displaced, True)):
        found = HandSeparator(Given(hand), *networks)._joint(image, hand, "mcp3")
        assert (found.figures["turn_deg"] > 15) == subluxed
        assert any("displaced" in reason for reason in found.reasons) == subluxed
        assert found.status == "doubtful" or not subluxed


def alone(x: float, y: float) -> LocatedHand:
    """A hand of which MCP 3 alone is seen, upright at this place."""
    points = {name: np.array([0.0, 0.0]) for name in LANDMARKS}
    points |= {"mcp3": np.array([x, y]), "pip3": np.array([x, y - WIDTH_PX / 0.3])}
    sure = np.array([0.95 if name in ("mcp3", "pip3") else 0.0 for name in LANDMARKS])
    return LocatedHand(np.stack([points[name] for name in LANDMARKS]), sure, "left", 0.0)


@pytest.mark.parametrize(("gap_px", "apart"), [(8.0, False), (40.0, True)])
def test_masks_with_room_for_an_epiphysis_between_them_are_refused(
    gap_px, apart, networks, monkeypatch
):
    joint = joint_phantom(2, gap_px=gap_px)
    sure = networks[0](joint_phantom(2, gap_px=8.0).image)
    masks = replace(sure, masks=joint.masks[:2])
    crop = Crop((127.5, 127.5), 0.0, 256)
    separator = HandSeparator(Given(alone(*crop.centre)), *networks)
    monkeypatch.setattr(HandSeparator, "_segmented", lambda *_: (crop, masks))
    found = separator._joint(joint.image, alone(*crop.centre), "mcp3")
    assert found.figures["bones_apart"] == pytest.approx(0.29 if apart else 0.07, abs=0.01)
    assert (found.segmentation is None) == apart
    assert any("further apart" in reason for reason in found.reasons) == apart


def test_a_negative_is_inverted(picture, networks):
    hand = located()
    dark = LocatedHand(hand.points, hand.confidences, "left", 0.0, negative=True)
    found = HandSeparator(Given(dark), *networks)(1 - picture)[0]
    assert found["mcp3"].segmentation is not None
    assert "bone is dark" in found.notes[0]


def test_a_side_that_is_given_wins_and_the_contradiction_is_said(picture, networks):
    found = HandSeparator(Given(located()), *networks)(picture, side="right")[0]
    assert found.side == "right"
    assert any("thumb" in note for note in found.notes)


def test_a_crop_goes_back_where_it_came_from(picture):
    crop = Crop((560.0, 310.0), 37.0, 200)
    part, place = crop.place(crop.cut(picture), picture.shape)
    covered, _ = crop.place(np.ones((200, 200), np.float32), picture.shape)
    error = np.abs(part - picture[place])[covered >= 1]
    assert error.max() < 0.25
    assert error.mean() < 0.01
    assert crop.outside(picture.shape) == 0
    assert Crop((0.0, 310.0), 0.0, 200).outside(picture.shape) == pytest.approx(0.5, abs=0.05)
    nothing, _ = Crop((-500.0, 0.0), 0.0, 20).place(np.ones((20, 20), np.float32), picture.shape)
    assert nothing.size == 0


def with_plates(image: np.ndarray, masks: np.ndarray, share: float) -> np.ndarray:
    """A line of cartilage across the upper bone of a joint phantom, a quarter of its width from its
    joint end, in which ``share`` of the bone's brightness is lost."""
    upper = masks[0]
    end = 255 - np.argmax(upper[::-1], axis=0)
    away = end[None] - np.arange(256)[:, None]
    line = np.exp(-(((away - 0.25 * WIDTH_PX) / 4.0) ** 2)) * upper
    return (image * (1 - share * line)).astype(np.float32)


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_line_across_the_phalanx_is_told_by_its_depth(seed):
    joint = joint_phantom(seed)
    masks = joint.masks[:2]
    plain, faint, deep = (
        growth_plate(with_plates(joint.image, masks, share), masks) for share in (0.0, 0.1, 0.4)
    )
    assert plain < CLOSING_PLATE
    assert plain <= faint < deep
    assert deep > OPEN_PLATE
    assert growth_plate(np.full((256, 256), 0.5, np.float32), masks) == 0


def test_a_hand_with_open_growth_plates_is_refused_though_its_masks_are_sure(picture, networks):
    separator = HandSeparator(Given(located()), *networks)
    grown = separator.masks(picture)[0]
    canvas = np.zeros(SHAPE, np.float32)
    for seed, (x, degrees) in enumerate(PLACES.values(), start=1):
        joint = joint_phantom(seed)
        crop = Crop((x, SHAPE[0] / 2), degrees, 256)
        part, place = crop.place(with_plates(joint.image, joint.masks[:2], 0.3), SHAPE)
        canvas[place] = np.maximum(canvas[place], part)
    child = separator.masks(canvas)[0]
    for name in PLACES:
        assert grown[name].segmentation is not None
        assert child[name].segmentation is None
        assert child[name].figures["growth_plate"] > OPEN_PLATE  # it had masks
        assert "growth plates" in child[name].reasons[0]
    assert any("a child's hand" in note for note in child.notes)
    assert not any("growth plates" in note and "open: " in note for note in grown.notes)


def test_a_hand_of_which_nothing_is_sure_is_not_measured(picture, networks):
    """Small children's epiphyses are taken for heads, with doubts and beside refused joints."""
    found = HandSeparator(Given(located()), *networks).masks(picture)[0].joints
    assert found[0].status == "refused"  # MCP 1 is not in the picture

    def judged(*statuses: str) -> set[str]:
        changed = [
            replace(joint, status=status, segmentation=None if status == "refused" else masks)
            for joint, status, masks in zip(
                found, ("refused", *statuses), [one.segmentation for one in found], strict=False
            )
        ]
        after = _mostly_refused([*changed, *found[5:]])
        assert all((joint.segmentation is None) == (joint.status == "refused") for joint in after)
        return {joint.status for joint in after[:5]}

    assert judged("refused", "doubtful", "doubtful", "doubtful") == {"refused"}
    assert judged("refused", "refused", "ok", "ok") == {"refused"}
    assert judged("refused", "ok", "doubtful", "doubtful") == {"refused", "doubtful"}
    assert judged("doubtful", "doubtful", "doubtful", "doubtful") == {"refused", "doubtful"}
    assert judged("ok", "ok", "ok", "ok") == {"refused", "ok"}
