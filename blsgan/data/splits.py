"""Training and validation joints: one fixed hash of the joint's name decides, for ever.

Visits of one joint look alike, so a split by image would leak; a split by hash needs no list file,
survives new downloads of the dataset and cannot drift between training and evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from blsgan.data.layout import JointImage
from blsgan.errors import InputError, UsageError

VALIDATION_SHARE = 0.18
SPLITS = ("train", "val", "all")


def is_validation(joint: str) -> bool:
    """True for the joints held out of every training run (18 % of all possible names)."""
    digest = hashlib.sha256(f"blsgan-split-1:{joint}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64


def select(images: Iterable[JointImage], split: str) -> list[JointImage]:
    """The images of ``split``: ``train``, ``val`` or ``all``, in the given order.

    Raises:
        UsageError: another split's name.
    """
    if split not in SPLITS:
        raise UsageError(f"split '{split}' is unknown; choose one of {', '.join(SPLITS)}")
    if split == "all":
        return list(images)
    return [image for image in images if is_validation(image.joint) == (split == "val")]


def split_for_training(images: Sequence[JointImage]) -> tuple[list[JointImage], list[JointImage]]:
    """The images to train on and to validate on.

    Raises:
        InputError: one of both has no joint.
    """
    training, validation = select(images, "train"), select(images, "val")
    if not training or not validation:
        raise InputError(
            f"the dataset's {len(images)} images leave {len(training)} for training "
            f"and {len(validation)} for validation; both must have some joints"
        )
    return training, validation
