"""An engine says where it fits, and is refused with one sentence everywhere else."""

from __future__ import annotations

import hashlib
import json

import pytest

from blsgan.errors import BackendError, WeightsError
from blsgan.runtimes.gpu import Gpu, this_gpu
from blsgan.runtimes.manifest import (
    Manifest,
    check_fits,
    manifest_path,
    misfit,
    read_manifest,
    read_plan,
)

PLAN = b"FAKE PLAN\nnot a graph"


def fields(**changes):
    """A manifest's fields, of an engine that TensorRT 10.13.2.6 built on an RTX A2000."""
    shape = {"min": [1, 1, 32, 32], "opt": [1, 1, 96, 192], "max": [8, 1, 512, 512]}
    masks = {place: [s[0], 2, *s[2:]] for place, s in shape.items()}
    return {
        "schema": 1, "blsgan": "0.1.0", "engine": "m.engine",
        "sha256": hashlib.sha256(PLAN).hexdigest(), "bytes": len(PLAN), "key": "k" * 64,
        "model": {
            "file": "m.onnx", "sha256": "a" * 64, "converted_sha256": "b" * 64, "weights": "lite",
            "weights_sha256": "c" * 64, "architecture": "lite", "size_multiple": 8,
            "law": 6.0, "reach_px": 4,
        },
        "precision": "fp16", "converter": "blsgan 0.1.0", "calibration": None,
        "layers": {"conv": "fp16"},
        "gate": {"psnr_db": 79.7, "drop_db": 0.01, "passed": True}, "forced": False,
        "backend": "tensorrt", "backend_version": "10.13.2.6", "compute_capabilities": ["8.6"],
        "gpu": "RTX A2000", "hardware": "none", "version_compatible": False,
        "profile": {"image": shape, "masks": masks},
        "workspace_bytes": 2**31, "build_seconds": 1.5, "built": "2026-01-01T00:00:00+00:00",
        **changes,
    }  # fmt: skip


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "m.engine"
    path.write_bytes(PLAN)
    manifest_path(path).write_text(json.dumps(fields()))
    return path


def test_text_and_reading_are_inverse(engine):
    manifest = read_manifest(engine)
    assert manifest_path(engine).name == "m.engine.json"
    assert json.loads(manifest.text()) == fields()
    assert read_plan(engine, manifest) == PLAN
    assert manifest.parity() == "fp16, 79.7 dB against float32, quality -0.01 dB"
    forced = Manifest.model_validate(fields(forced=True))
    assert "FAILED its gate" in forced.parity()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable manifest"),
        ("[" * 200_000, "not a readable manifest"),
        ("[]", "not a manifest of this version of blsgan"),
        (json.dumps(fields(schema=2)), "schema: "),
        (json.dumps(fields(backend="onnx")), "backend: "),
        (json.dumps(fields(precision=3)), "precision: "),
        (json.dumps(fields(more=1)), "more: "),
        (json.dumps({k: v for k, v in fields().items() if k != "sha256"}), "sha256: "),
    ],
    ids=range(8),
)
def test_a_damaged_manifest(engine, text, message):
    manifest_path(engine).write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_manifest(engine)


def test_a_missing_manifest_and_another_plan(engine):
    manifest = read_manifest(engine)
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(WeightsError, match=r"m\.engine is not the engine its manifest describes"):
        read_plan(engine, manifest)
    manifest_path(engine).unlink()
    with pytest.raises(WeightsError, match=r"nobody knows where m\.engine may run"):
        read_manifest(engine)


A2000, ORIN = Gpu("RTX A2000", "8.6"), Gpu("Orin", "8.7")


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "message"),
    [
        ({}, "10.13.2.6", A2000, None),
        ({}, None, A2000, "it was built by tensorrt 10.13.2.6, and tensorrt is not installed"),
        ({}, "10.3.0", A2000, "built by tensorrt 10.13.2.6, and here is 10.3.0; build it here"),
        ({}, "10.13.2.6", None, "no usable NVIDIA GPU"),
        ({}, "10.13.2.6", ORIN, "built for compute capability 8.6, and Orin has 8.7"),
        ({}, "10.13.2.6", Gpu("RTX A4000", "8.6"), "built on RTX A2000, and here is RTX A4000"),
        # TensorRT-RTX makes its kernels where it runs: any GPU of the capability.
        (
            {"backend": "tensorrt-rtx", "gpu": None, "compute_capabilities": ["8.6", "8.9"]},
            "10.13.2.6", Gpu("RTX 4070", "8.9"), None,
        ),
        # TensorRT's modes of compatibility.
        ({"hardware": "ampere+"}, "10.13.2.6", Gpu("Thor", "11.0"), None),
        ({"hardware": "ampere+"}, "10.13.2.6", Gpu("T4", "7.5"), "8.0 and newer, and T4"),
        ({"hardware": "same-capability"}, "10.13.2.6", Gpu("RTX A4000", "8.6"), None),
        ({"hardware": "same-capability"}, "10.13.2.6", ORIN, "capability 8.6, and Orin has 8.7"),
        ({"version_compatible": True}, "10.16.1.11", A2000, None),
        ({"version_compatible": True}, "10.3.0", A2000, "and here is 10.3.0; build it here again"),
        ({"version_compatible": True}, "11.4.0", A2000, "and here is 11.4.0; build it here again"),
    ],
    ids=range(14),
)  # fmt: skip
def test_what_fits_and_what_does_not(monkeypatch, changes, version, gpu, message):
    monkeypatch.setattr("blsgan.runtimes.libraries.find_spec", lambda name: None)
    problem = misfit(Manifest.model_validate(fields(**changes)), version=version, gpu=gpu)
    assert problem is None if message is None else message in problem


def test_an_engine_of_this_machine_and_of_another(engine, fake_machine):
    manifest = read_manifest(engine)
    fake_machine("10", name="RTX A2000")
    assert check_fits(engine, manifest) == A2000
    fake_machine("10", name="Orin", minor=7)
    with pytest.raises(BackendError, match=r"m\.engine cannot run here: it was built for comp"):
        check_fits(engine, manifest)
    fake_machine("11", name="RTX A2000")
    with pytest.raises(BackendError, match=r"built by tensorrt 10\.13\.2\.6, and here is 11\.4\.0"):
        check_fits(engine, manifest)
    fake_machine("10", count=0)
    with pytest.raises(BackendError, match="this machine has 0 NVIDIA GPUs, none of number 0"):
        check_fits(engine, manifest)


def test_the_gpu_of_this_machine_or_why_there_is_none():
    """Whatever this machine has, it ends in an answer and not in a crash."""
    try:
        gpu = this_gpu()
    except BackendError as error:
        assert str(error).endswith(".")
        assert "\n" not in str(error)
    else:
        assert gpu.name
        assert gpu.compute_capability.count(".") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"profile": {}}, "profile: "),
        ({"profile": {"image": fields()["profile"]["image"]}}, "profile: "),
        ({"gate": {}}, "does not say whether it passed"),
        ({"gate": {"psnr_db": 50.0, "passed": True}}, "no figures"),
        ({"gate": {"psnr_db": "much", "drop_db": 0.1, "passed": True}}, "no figures"),
        ({"gate": {"psnr_db": float("nan"), "drop_db": 0.1, "passed": True}}, "no figures"),
        ({"gate": {"psnr_db": 20.0, "drop_db": 3.0, "passed": False}}, "did not pass"),
    ],
)
def test_an_empty_profile_and_an_unchecked_gate_are_refused(engine, changes, said):
    manifest_path(engine).write_text(json.dumps(fields(**changes)))
    with pytest.raises(WeightsError, match=said):
        read_manifest(engine)


def test_shapes_out_of_order_are_refused(engine):
    shape = {"min": [2, 1, 32, 32], "opt": [1, 1, 32, 32], "max": [8, 1, 32, 32]}
    profile = {"image": shape, "masks": fields()["profile"]["masks"]}
    manifest_path(engine).write_text(json.dumps(fields(profile=profile)))
    with pytest.raises(WeightsError, match="in this order"):
        read_manifest(engine)
