"""What was measured as a DICOM report: an Enhanced SR by TID 1500, built by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blsgan import __version__
from blsgan.clinical.objects import (
    CREATOR,
    MANUFACTURER,
    SCHEME,
    SERIES_NUMBERS,
    Reference,
    equipment,
    finish,
)
from blsgan.records.narrowing import NarrowingRecord

if TYPE_CHECKING:
    from pydicom import Dataset


def own_code(value: str, meaning: str) -> Any:
    """A code of the private scheme."""
    from pydicom.sr.coding import Code

    return Code(value, SCHEME, meaning)


def length(value: str, meaning: str, px: float, mm: float | None) -> Any:
    """A length as a measurement under a code of the private scheme: in mm where that is known."""
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    unit = Code("{pixels}", "UCUM", "pixels") if mm is None else codes.UCUM.Millimeter
    return Measurement(own_code(value, meaning), float(px if mm is None else mm), unit)


def score(value: str, meaning: str, number: float) -> Any:
    """A number without a unit as a measurement under a code of the private scheme."""
    from highdicom.sr import Measurement
    from pydicom.sr.codedict import codes

    return Measurement(own_code(value, meaning), number, codes.UCUM.NoUnits)


def group(
    name: str,
    references: Sequence[Reference],
    measurements: Sequence[Any],
    evaluations: Sequence[tuple[Any, Any]] = (),
    *,
    site: dict[str, Any] | None = None,
    **context: Any,
) -> Any:
    """What was measured of one thing.

    Args:
        name: what it is called in the report.
        references: the radiographs that it was measured on.
        measurements: as :func:`length` and :func:`score` make them; may be none.
        evaluations: codes of a question and of its answer.
        site: laterality and topographical modifier of the finger joint.
        context: time point and algorithm, as highdicom takes them.
    """
    from highdicom.sr import (
        FindingSite,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    return MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(generate_uid(prefix=None), name),
        finding_sites=[FindingSite(codes.SCT.FingerJoint, **(site or {}))],
        measurements=list(measurements) or None,
        qualitative_evaluations=[QualitativeEvaluation(*pair) for pair in evaluations] or None,
        source_images=[
            SourceImageForMeasurementGroup(
                str(each.dataset.SOPClassUID), str(each.dataset.SOPInstanceUID)
            )
            for each in references
        ],
        **context,
    )


def measurement_report(
    baseline: Reference, followup: Reference, record: NarrowingRecord
) -> Dataset:
    """JSN between two radiographs as a report in the follow-up's study.

    A mismatch carries no measurement of narrowing, but a code that says so and the reasons.
    """
    from highdicom.sr import AlgorithmIdentification, TimePointContext
    from pydicom.sr.codedict import codes

    weights = record.weights
    layers = (
        "layers=not separated" if weights is None else f"weights={weights.name} {weights.sha256}"
    )
    algorithm = AlgorithmIdentification(
        "blsgan jsn", record.blsgan, parameters=[f"fit_scale={record.fit_scale}", layers]
    )

    def context(time_point: str, order: int) -> dict[str, Any]:
        return {
            "time_point_context": TimePointContext(time_point, time_point_order=order),
            "algorithm_id": algorithm,
        }

    if record.mismatch:
        result, narrowing = own_code("MISMATCH", "Mismatch, no measurement"), []
    else:
        result = own_code("MEASURED", "Measured")
        narrowing = [
            length("JSN", "Joint space narrowing", record.narrowing_px, record.narrowing_mm),
            score("QUALITY", "Registration quality", record.quality),
        ]
    groups = [
        group(
            "joint space narrowing",
            [baseline, followup],
            narrowing,
            [(own_code("STATUS", "Measurement status"), result)],
            **context("baseline to follow-up", 2),
        )
    ]
    spaces = record.joint_space_width
    for order, (visit, width, source) in enumerate(
        (("baseline", spaces.baseline, baseline), ("followup", spaces.followup, followup)), start=1
    ):
        if width is not None:
            widths = [
                length("JSWMEAN", "Mean joint space width", width.mean_px, width.mean_mm),
                length("JSWMIN", "Minimal joint space width", width.minimum_px, width.minimum_mm),
            ]
            name = f"joint space width, {visit}"
            groups.append(group(name, [source], widths, **context(visit, order)))
    return report_object(
        [followup, baseline],
        groups,
        [*record.problems, *record.notes],
        "Joint space narrowing",
        codes.cid100.XRUnspecifiedBodyRegion,
    )


def report_object(
    references: Sequence[Reference],
    groups: list[Any],
    comments: Sequence[str],
    description: str,
    procedure: Any,
) -> Dataset:
    """An Enhanced SR by TID 1500, in the study of the first of ``references``.

    Args:
        references: the radiographs that it is about.
        groups: of measurements.
        comments: texts that stand after them.
        description: of its series.
        procedure: the code of what was reported.
    """
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        EnhancedSR,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
        TextContentItem,
    )
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    device = DeviceObserverIdentifyingAttributes(
        uid=CREATOR,
        name="blsgan",
        manufacturer_name=MANUFACTURER,
        model_name=f"blsgan {__version__}",
    )
    report = MeasurementReport(
        ObservationContext(ObserverContext(codes.DCM.Device, device)),
        procedure,
        groups,
    )
    for text in comments:
        report[0].ContentSequence.append(
            TextContentItem(codes.DCM.Comment, str(text), relationship_type="CONTAINS")
        )
    found = EnhancedSR(
        [reference.dataset for reference in references],
        report,
        generate_uid(prefix=None),
        SERIES_NUMBERS["jsn"],
        generate_uid(prefix=None),
        1,
        is_complete=True,
        series_description=description,
        coding_schemes=[
            CodingSchemeIdentificationItem(SCHEME, name="blsgan", responsible_organization="blsgan")
        ],
        **equipment(),
    )
    finish(found, references[0].anonymous, *references)
    return found
