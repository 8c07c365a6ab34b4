"""Training and validation joints: one fixed hash of the joint's name decides, for ever.

Visits of one joint look alike, so a split by image would leak; a split by hash needs no list file,
survives new downloads of the dataset and cannot drift between training and evaluation. Folds for
cross-validation, ``K/N``, are made the same way by another hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from blsgan.data.layout import JointImage
from blsgan.errors import InputError, UsageError

VALIDATION_SHARE = 0.18
VALIDATION = "val"
SPLITS = ("train", VALIDATION, "all")
MOST_FOLDS = 100


def _share(text: str) -> float:
    """A fixed number in [0, 1) for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def is_validation(joint: str) -> bool:
    """True for the joints held out of every training run (18 % of all possible names)."""
    return _share(f"blsgan-split-1:{joint}") < VALIDATION_SHARE


def is_held_out(joint: str, held_out: str = VALIDATION) -> bool:
    """Whether a run that holds ``held_out`` out never learns from this joint.

    Args:
        joint: its name.
        held_out: ``val``, or ``K/N``: the K-th of N folds, of which every joint is in one.

    Raises:
        UsageError: another text.
    """
    if held_out == VALIDATION:
        return is_validation(joint)
    fold, folds = fold_of(held_out)
    return int(_share(f"blsgan-fold-1:{joint}") * folds) == fold - 1


def fold_of(text: str) -> tuple[int, int]:
    """K and N of ``K/N``; raises :class:`UsageError` unless 1 <= K <= N and 2 <= N <= 100."""
    match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text, re.ASCII)
    fold, folds = (int(part) for part in match.groups()) if match else (0, 0)
    if not (1 <= fold <= folds and 2 <= folds <= MOST_FOLDS):
        raise UsageError(
            f"split '{text}' is unknown; choose one of {', '.join(SPLITS)}, or K/N for the K-th of "
            f"N folds (at most {MOST_FOLDS}), as 1/4"
        )
    return fold, folds


def check_split(split: str) -> None:
    """Raises :class:`UsageError` unless ``split`` is ``train``, ``val``, ``all`` or ``K/N``."""
    if split not in SPLITS:
        fold_of(split)


def select(images: Iterable[JointImage], split: str) -> list[JointImage]:
    """The images of ``split``: ``train``, ``val``, ``all`` or a fold ``K/N``, in the given order.

    Raises:
        UsageError: another split's name.
    """
    if split == "all":
        return list(images)
    if split == "train":
        return [image for image in images if not is_validation(image.joint)]
    check_split(split)  # a wrong one is said of no images, too
    return [image for image in images if is_held_out(image.joint, split)]


def split_for_training(
    images: Sequence[JointImage], held_out: str = VALIDATION
) -> tuple[list[JointImage], list[JointImage]]:
    """The images to train on and to validate on, which are those ``held_out``.

    Raises:
        InputError: one of both has no joint.
        UsageError: ``held_out`` is neither ``val`` nor ``K/N``.
    """
    validation = select(images, held_out)
    training = [image for image in images if not is_held_out(image.joint, held_out)]
    if not training or not validation:
        raise InputError(
            f"the dataset's {len(images)} images leave {len(training)} for training "
            f"and {len(validation)} for validation; both must have some joints"
        )
    return training, validation
