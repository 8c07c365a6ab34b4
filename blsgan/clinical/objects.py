"""DICOM objects of a result: layers as derived images, masks as a segmentation.

highdicom builds and checks them. Layers are Secondary Capture images of image type DERIVED, which
every viewer and archive takes; masks a Segmentation with one segment for each bone (they overlap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan import __version__
from blsgan.clinical.identity import KEPT, Policy, mark_anonymous
from blsgan.io.masks import BONES
from blsgan.io.results import to_uint16
from blsgan.io.spacing import PixelSpacing
from blsgan.records.separation import SeparationRecord

if TYPE_CHECKING:
    from pydicom import Dataset

MANUFACTURER = "blsgan"
SCHEME = "99BLSGAN"
"""Private coding scheme of what no published scheme names."""

CREATOR = Policy(salt="").uid("creator", MANUFACTURER)  # one for all of blsgan's objects
SERIES_NUMBERS = {"input": 9001, "layers": 9002, "masks": 9003, "jsn": 9004}
_SCALE_NOTE = "Stored value / 65535 is the intensity 0..1, dense bone bright."


@dataclass(frozen=True)
class Reference:
    """The radiograph that objects refer to: a dataset with patient, study, UIDs and geometry.

    ``sop_class`` is its storage class; ``dataset`` may have a stand-in that highdicom knows.
    """

    dataset: Dataset
    spacing: PixelSpacing | None
    anonymous: bool
    sop_class: str


def equipment() -> dict[str, Any]:
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": "blsgan",
        "software_versions": __version__,
    }


def _image(
    belongs: Dataset,
    plane: NDArray[np.float32],
    spacing: PixelSpacing | None,
    *,
    series: str,
    series_number: int,
    instance: str,
    number: int,
    kind: str,
    description: str,
    derivation: str,
) -> Dataset:
    """A Secondary Capture image of ``plane`` (float32 [H,W] in [0,1]), 16 bits."""
    from highdicom.sc import SCImage

    unknown: Any = None
    image = SCImage.from_ref_dataset(
        belongs,
        to_uint16(plane),
        "MONOCHROME2",
        16,
        "PATIENT",
        series,
        series_number,
        instance,
        number,
        # Placeholder: highdicom wants one, and the radiograph's, if any, is put in below.
        patient_orientation=("L", "F"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description=description,
        **equipment(),
    )
    image.PatientOrientation = unknown
    for keyword in KEPT:
        if keyword in belongs:
            image[keyword] = belongs[keyword]
    image.ConversionType = "WSD"
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER", kind]
    image.DerivationDescription = f"{derivation} {_SCALE_NOTE}"[:1024]
    image.WindowCenter, image.WindowWidth = "32768", "65536"
    image.PresentationLUTShape = "IDENTITY"
    _set_spacing(image, spacing)
    for keyword in ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"):
        if keyword in image:
            delattr(image, keyword)
    return image


def _set_spacing(dataset: Dataset, spacing: PixelSpacing | None) -> None:
    from pydicom.valuerep import DSfloat

    if spacing is None:
        return
    sides = [DSfloat(side, auto_format=True) for side in (spacing.row_mm, spacing.column_mm)]
    dataset.PixelSpacing = sides
    if spacing.source == "ImagerPixelSpacing":
        # Equal to PixelSpacing this says, by the standard, that nothing was calibrated.
        dataset.ImagerPixelSpacing = sides


def finish(dataset: Dataset, anonymous: bool, *references: Reference) -> None:
    """Say that identity was removed, and take back what highdicom thinks of the equipment.

    It takes the writer of the anonymous radiograph for the device that acquired it. References to
    radiographs get the class that theirs is of.
    """
    from pydicom.sr.codedict import codes

    classes = {str(each.dataset.SOPInstanceUID): each.sop_class for each in references}

    def put_class(item: Dataset, element: Any) -> None:
        found = classes.get(str(item.get("ReferencedSOPInstanceUID", "")))
        if element.keyword == "ReferencedSOPClassUID" and found:
            element.value = found

    dataset.walk(put_class)
    if not anonymous:
        return
    mark_anonymous(dataset)
    dataset.ContributingEquipmentSequence = [
        item
        for item in dataset.ContributingEquipmentSequence
        if item.PurposeOfReferenceCodeSequence[0].CodeValue != codes.DCM.AcquisitionEquipment.value
    ]


def input_image(
    belongs: Dataset,
    pixels: NDArray[np.float32],
    spacing: PixelSpacing | None,
    series: str,
    instance: str,
) -> Dataset:
    """The radiograph as it was separated, without identity: what other objects can refer to.

    The same radiograph gives the same object, to its UID.
    """
    image = _image(
        belongs,
        pixels,
        spacing,
        series=series,
        series_number=SERIES_NUMBERS["input"],
        instance=instance,
        number=1,
        kind="INPUT",
        description="Radiograph (anonymous)",
        derivation=f"The radiograph as blsgan {__version__} read it, after its VOI transform.",
    )
    finish(image, anonymous=True)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"):
        if keyword in image:
            delattr(image, keyword)
    for item in image.ContributingEquipmentSequence:
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    return image


def layer_images(
    reference: Reference, layers: Sequence[NDArray[np.float32]], record: SeparationRecord
) -> list[Dataset]:
    """The upper and the lower layer as derived images of one series."""
    from pydicom.uid import generate_uid

    weights, k = record.weights, record.soft_tissue
    series = generate_uid(prefix=None)
    images = []
    for number, (bone, layer) in enumerate(zip(BONES, layers, strict=True), start=1):
        image = _image(
            reference.dataset,
            layer,
            reference.spacing,
            series=series,
            series_number=SERIES_NUMBERS["layers"],
            instance=generate_uid(prefix=None),
            number=number,
            kind=f"{bone.upper()}_LAYER",
            description="Bone layers",
            derivation=(
                f"Layer of the {bone} bone, estimated by blsgan {record.blsgan} with "
                f"weights {weights.name} (SHA-256 {weights.sha256})"
                + (f", soft tissue k {k:.3f}" if k is not None else "")
                + f"; radiograph SHA-256 {record.inputs['image'].sha256}. Outside the "
                "overlap the layer is the radiograph. Not for primary diagnosis."
            ),
        )
        image.SourceImageSequence = [_source_item(reference.dataset)]
        image.InstanceCreatorUID = CREATOR
        image.ImageComments = f"{bone} bone"
        image.BurnedInAnnotation = "NO"  # outside the bone there is nothing
        finish(image, reference.anonymous, reference)
        images.append(image)
    return images


def _source_item(dataset: Dataset) -> Dataset:
    from highdicom.sr import CodedConcept
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    item = Dataset()
    item.ReferencedSOPClassUID = dataset.SOPClassUID
    item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    code = codes.DCM.SourceImageForImageProcessingOperation
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(code)]
    return item


def segmentation(
    reference: Reference, masks: NDArray[np.bool_], *, predicted: bool, confidence: float | None
) -> Dataset:
    """Both masks (bool [2,H,W]) as a binary segmentation of the radiograph."""
    segments = [
        bone_segment(number, f"{bone} bone", predicted=predicted, confidence=confidence)
        for number, bone in enumerate(BONES, start=1)
    ]
    return segmentation_object(
        reference, masks, segments, "Masks of both bones of a joint; they may overlap"
    )


def bone_segment(
    number: int, label: str, *, predicted: bool, confidence: float | None, region: Any = None
) -> Any:
    """The description of one bone's segment; ``region`` is the code of where it lies."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    algorithm: dict[str, Any] = {"algorithm_type": "MANUAL"}
    if predicted:
        algorithm = {
            "algorithm_type": "AUTOMATIC",
            "algorithm_identification": AlgorithmIdentificationSequence(
                name="blsgan segment",
                family=codes.DCM.ArtificialIntelligence,
                version=__version__,
                parameters=None if confidence is None else {"confidence": f"{confidence:.3f}"},
            ),
        }
    return SegmentDescription(
        number,
        label,
        codes.SCT.AnatomicalStructure,
        codes.SCT.Bone,
        tracking_id=label,
        tracking_uid=generate_uid(prefix=None),
        anatomic_regions=None if region is None else [region],
        **algorithm,
    )


def segmentation_object(
    reference: Reference, masks: NDArray[np.bool_], segments: list[Any], description: str
) -> Dataset:
    """Masks bool [S,H,W] as a binary segmentation of the radiograph."""
    from highdicom.seg import Segmentation
    from pydicom.uid import generate_uid

    found = Segmentation(
        [reference.dataset],
        np.ascontiguousarray(masks.transpose(1, 2, 0)[None]),
        "BINARY",
        segments,
        generate_uid(prefix=None),
        SERIES_NUMBERS["masks"],
        generate_uid(prefix=None),
        1,
        MANUFACTURER,
        "blsgan",
        __version__,
        "none",
        content_label="BONES",
        content_description=description,
        series_description="Bone masks",
    )
    # highdicom writes pixel measures without a slice thickness, which a projection has not, and
    # then refuses to read them. So the spacing stands where the radiograph has it, as an extension
    # of the standard's object.
    shared = found.SharedFunctionalGroupsSequence[0]
    if "PixelMeasuresSequence" in shared:
        del shared.PixelMeasuresSequence
    _set_spacing(found, reference.spacing)
    finish(found, reference.anonymous, reference)
    return found
