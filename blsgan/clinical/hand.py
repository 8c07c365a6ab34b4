"""A whole hand as DICOM objects: the masks of all joints, and what was found of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan.anatomy import finger_of, title
from blsgan.clinical.objects import Reference, bone_segment, segmentation_object
from blsgan.clinical.reports import group, length, own_code, report_object, score
from blsgan.io.masks import BONES
from blsgan.records.hand import HandRecord
from blsgan.records.hand_visits import HandVisitsRecord, JointInterval

if TYPE_CHECKING:
    from pydicom import Dataset

_KINDS = {
    "mcp": "metacarpophalangeal joint",
    "pip": "proximal interphalangeal joint",
    "ip": "interphalangeal joint",
}
_FINGERS = ("thumb", "index finger", "middle finger", "ring finger", "little finger")


def joint_code(joint: str) -> Any:
    """Which finger joint it is: a code of the private scheme."""
    kind, finger = _KINDS[joint[:-1]], _FINGERS[finger_of(joint) - 1]
    return own_code(joint.upper(), f"{kind.capitalize()} of {finger}")


def hand_segmentation(
    reference: Reference, masks: dict[str, NDArray[np.bool_]], record: HandRecord
) -> Dataset:
    """Both masks of every joint as segments of the whole radiograph.

    Args:
        reference: the radiograph.
        masks: of each joint bool [2,H,W] on the radiograph's pixels.
        record: of the hand.
    """
    from pydicom.sr.codedict import codes

    segments: list[Any] = []
    for joint in masks:
        confidence = record.joints[joint].confidence
        segments += [
            bone_segment(
                len(segments) + number,
                f"{record.side} {title(joint)}, {bone} bone",
                predicted=True,
                confidence=None if confidence is None else confidence.score,
                region=codes.SCT.FingerJoint,
            )
            for number, bone in enumerate(BONES, start=1)
        ]
    return segmentation_object(
        reference, np.concatenate(list(masks.values())), segments, "Masks of a hand's joints"
    )


def hand_report(reference: Reference, record: HandRecord) -> Dataset:
    """What became of each joint of a hand, as a TID 1500 report."""
    from pydicom.sr.codedict import codes

    groups, comments = [], []
    for name, joint in record.joints.items():
        measurements = []
        if joint.confidence is not None:
            measurements = [score("CONFIDENCE", "Confidence of the masks", joint.confidence.score)]
        status = own_code(joint.status.upper(), joint.status.capitalize())
        groups.append(
            group(
                f"{record.side} {title(name)}",
                [reference],
                measurements,
                [(own_code("MASKS", "Status of the masks"), status)],
                site=_site(name, record.side),
            )
        )
        comments += [f"{title(name)}: {reason}" for reason in joint.reasons]
    return report_object(
        [reference],
        groups,
        [*comments, *record.notes],
        "Joints of a hand",
        codes.cid100.XRUnspecifiedBodyRegion,
    )


def visits_report(
    earlier: Reference, later: Reference, record: HandVisitsRecord, joints: Sequence[JointInterval]
) -> Dataset:
    """The joints of one side between two visits, in the later one's study.

    A joint that is not measurable has no figures, but the verdict and its reasons.
    """
    from pydicom.sr.codedict import codes

    groups, comments = [], []
    for one in joints:
        measurements = []
        if one.verdict != "not measurable" and one.narrowing_px is not None:
            side_mm = one.pixel_mm
            figures = (
                ("JSN", "Joint space narrowing", one.narrowing_px),
                ("JSNSE", "Standard error of joint space narrowing", one.standard_error_px),
                ("JSNSDD", "Smallest detectable difference", one.detectable_px),
            )
            measurements = [
                length(code, meaning, px, None if side_mm is None else px * side_mm)
                for code, meaning, px in figures
                if px is not None
            ]
        verdict = own_code(one.verdict.upper().replace(" ", "_"), one.verdict.capitalize())
        groups.append(
            group(
                f"{one.side} {title(one.joint)}",
                [earlier, later],
                measurements,
                [(own_code("VERDICT", "Verdict on narrowing"), verdict)],
                site=_site(one.joint, one.side),
            )
        )
        comments += [f"{title(one.joint)}: {flag}" for flag in one.flags]
    return report_object(
        [later, earlier],
        groups,
        [*comments, *record.notes],
        "Joint space narrowing",
        codes.cid100.XRUnspecifiedBodyRegion,
    )


def _site(joint: str, side: str) -> dict[str, Any]:
    from pydicom.sr.codedict import codes

    return {
        "laterality": codes.SCT.Left if side == "left" else codes.SCT.Right,
        "topographical_modifier": joint_code(joint),
    }
