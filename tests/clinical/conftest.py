"""Radiographs with an identity to lose: DICOM phantoms, their results and their measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from blsgan.synthesis.phantoms import joint_phantom

pytest.importorskip("highdicom", reason="highdicom is in the extra 'clinical'")

SECRETS = ("Doe", "Jane", "MRN-4711", "19610203", "ACC-99", "St. Elsewhere", "Dr^House", "1.2.3.4")


@dataclass(frozen=True)
class Case:
    """A patient's two visits: inputs, results of separate, of jsn, and the phantoms."""

    images: Path
    results: Path
    jsn: Path
    phantoms: tuple


def write_dicom(path, phantom, visit, **more):
    from PIL import Image
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{visit}.3"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.3.4.{visit}", f"1.2.3.4.{visit}.2"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "MRN-4711"
    dataset.PatientBirthDate, dataset.PatientSex = "19610203", "F"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = f"202{visit}0101", "101112", "S1"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = "ACC-99", "Dr^House"
    dataset.InstitutionName, dataset.Manufacturer = "St. Elsewhere", "ACME"
    dataset.Modality, dataset.BodyPartExamined, dataset.ImageLaterality = "DX", "HAND", "L"
    dataset.PatientOrientation = ["L", "F"]
    dataset.PatientComments = "Doe, Jane, seen by Dr House"
    dataset.add_new((0x0011, 0x0010), "LO", "Doe private")
    pixels = np.rint(phantom.image * 4095).astype(np.uint16)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.ImagerPixelSpacing = [0.2, 0.2]
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    for bone, mask in zip(("upper", "lower"), phantom.masks, strict=True):
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        picture.save(path.with_name(f"{path.stem}_mask_{bone}.png"))
    return path


@pytest.fixture(scope="session")
def case(tmp_path_factory, network):
    from blsgan.cli import main

    folder = tmp_path_factory.mktemp("case") / "DoeJane"
    phantoms = joint_phantom(5, 128, gap_px=-4.0), joint_phantom(5, 128, gap_px=-5.0)
    visits = [
        write_dicom(folder / "in" / f"Doe{number}.dcm", phantom, number)
        for number, phantom in enumerate(phantoms, start=1)
    ]
    weights = ["--weights", str(network)]
    assert main(["separate", str(folder / "in"), "-o", str(folder / "out"), *weights]) == 0
    pair = [str(visit) for visit in visits]
    assert main(["jsn", *pair, "--no-separation", "-o", str(folder / "jsn")]) == 0
    return Case(folder / "in", folder / "out", folder / "jsn", phantoms)


@pytest.fixture(scope="session")
def write_radiograph():
    """The function that writes a DICOM phantom with its masks."""
    return write_dicom


@pytest.fixture(scope="session")
def identifying():
    """Texts of which none may be in an anonymous object."""
    return SECRETS
