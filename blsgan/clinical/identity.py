"""Whom a DICOM object belongs to: nobody, unless the source's identity is asked for.

By default nothing of a source's header goes over but what :data:`KEPT` lists; the header of what is
written is built up, not cleaned, so that what nobody thought of stays behind. The UIDs and the
patient's ID that stand for the source's are made from its own by SHA-256 and a salt, a new one for
each export unless it is given: objects of one export belong together, and nothing leads back.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blsgan import __version__
from blsgan.clinical.header import normalised
from blsgan.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

KEPT = (
    "Modality",
    "BodyPartExamined",
    "Laterality",
    "ImageLaterality",
    "ViewPosition",
    "PatientOrientation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
"""What goes over from the source's header to an anonymous object, by keyword."""

PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Type 1 and 2 attributes of patient and study, which every object carries, empty or not."""

METHOD = [f"blsgan {__version__}: header rebuilt from kept attributes", "pixels not examined"]


@dataclass(frozen=True)
class Policy:
    """How objects are identified.

    Attributes:
        keep_identity: objects belong to the source's patient and study.
        salt: goes into the UIDs and IDs that stand for the source's: with the same one, exports
            meet; whoever has it and the source's header recognises them.
        patient_id: of anonymous objects (None: one for each patient, as far as they are known).
    """

    keep_identity: bool = False
    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    patient_id: str | None = None

    def uid(self, *parts: str) -> str:
        """The UID (``2.25``, a UUID by SHA-256) that stands for ``parts``."""
        digest = hashlib.sha256("\x1f".join((self.salt, *parts)).encode()).digest()
        return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def describe(
    policy: Policy, image_sha256: str, header: Dataset | None, name: str, patient: str
) -> tuple[Dataset, str, str, list[str]]:
    """Patient and study that objects made from one radiograph belong to.

    ``header`` is the radiograph's DICOM header, None for other pictures; ``name`` is for messages;
    ``patient`` is what radiographs of one patient share where their headers do not say.

    Returns:
        A dataset with :data:`PATIENT_AND_STUDY` and the kept attributes (the header, normalised,
        where identity is kept), the UIDs of series and instance that stand for the radiograph, and
        the keywords of what had to be left empty.

    Raises:
        InputError: identity is to be kept and there is none, the header lacks its UIDs, or its
            texts do not fit their character set.
    """
    from pydicom import Dataset

    source = Dataset() if header is None else header
    uids = [str(source.get(keyword) or "") for keyword in (
        "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]  # fmt: skip
    if policy.keep_identity:
        if header is None:
            raise InputError(
                f"{name} is no DICOM file, so it has no identity to keep; leave out "
                "--keep-identity."
            )
        if not all(uids):
            raise InputError(
                f"{name} lacks its study, series or instance UID; leave out --keep-identity."
            )
        kept, emptied = normalised(source, name)
        for keyword in PATIENT_AND_STUDY:
            if keyword not in kept:
                setattr(kept, keyword, None)
        return kept, uids[1], uids[2], emptied
    found = Dataset()
    for keyword in PATIENT_AND_STUDY:
        setattr(found, keyword, None)
    for keyword in KEPT:
        with contextlib.suppress(Exception):  # a damaged element is none
            if keyword in source:
                found[keyword] = source[keyword]
    found.PatientName = "ANONYMOUS^"
    key = policy.uid("patient", str(source.get("PatientID") or "") or patient)
    found.PatientID = policy.patient_id or f"ANON-{key[-12:]}"
    study, series, instance = (
        policy.uid(level, uid or image_sha256)
        for level, uid in zip(("study", "series", "instance"), uids, strict=True)
    )
    found.StudyInstanceUID = study
    return found, series, instance, []


def mark_anonymous(dataset: Dataset) -> None:
    """Say in ``dataset`` that, and how, identity was removed."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
