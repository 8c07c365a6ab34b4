"""Runtimes agree; weights are what their card says, or are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from blsgan.errors import BackendError, UsageError, WeightsError
from blsgan.runtimes import device, session
from blsgan.tasks.backend import create
from blsgan.tasks.separation import Separator

needs_openvino = pytest.mark.skipif(
    session.available()["openvino"] is not None, reason="openvino is not installed"
)


@pytest.fixture
def carded(network, tmp_path):
    """Weights with a card, as a training run leaves them."""
    path = tmp_path / "mine.onnx"
    shutil.copy(network, path)
    card = {
        "name": "mine",
        "architecture": "lite",
        "sha256": {"mine.onnx": hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


@needs_openvino
def test_openvino_agrees_with_onnx_runtime(network, phantom):
    onnx, openvino = (
        Separator.from_pretrained(network, name)(phantom.image, phantom.masks)
        for name in ("onnx", "openvino")
    )
    np.testing.assert_allclose(openvino.layers, onnx.layers, atol=1e-4)
    np.testing.assert_allclose(openvino.soft_tissue, onnx.soft_tissue, atol=1e-4)


@needs_openvino
def test_openvino_results_survive_the_next_call(network, phantom):
    backend = create("openvino", network)
    rng = np.random.default_rng(0)
    image = rng.random((1, 1, 32, 32), np.float32)
    masks = np.ones((1, 2, 32, 32), np.float32)
    logits, _ = backend.run(image, masks)
    kept = logits.copy()
    backend.run(1 - image, masks)
    np.testing.assert_array_equal(logits, kept)


@pytest.fixture
def lite(tmp_path):
    """A small network of the default architecture, far from its start, as torch keeps it."""
    torch = pytest.importorskip("torch", reason="the torch backend needs torch")
    from blsgan.models import build_generator
    from blsgan.models.weights import safetensors_bytes

    torch.manual_seed(0)
    generator = build_generator("lite", {"widths": [8, 8, 8, 8], "blocks": [1, 1, 1, 1]})
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    data = safetensors_bytes(generator)
    (tmp_path / "small.safetensors").write_bytes(data)
    card = {
        "architecture": "lite",
        "sha256": {"small.safetensors": hashlib.sha256(data).hexdigest()},
    }
    (tmp_path / "small.json").write_text(json.dumps(card))
    return tmp_path / "small.safetensors"


def test_torch_runs_the_registrys_network(lite, phantom):
    import torch

    from blsgan.models import load_generator

    backend = create("torch", lite)
    assert backend.weights.architecture == "lite"
    image = np.random.default_rng(0).random((2, 1, 48, 64), np.float32)
    masks = np.zeros((2, 2, 48, 64), np.float32)
    masks[:, 0, :30], masks[:, 1, 20:] = 1, 1
    logits, soft_tissue = backend.run(image, masks)
    with torch.no_grad():
        expected = load_generator(lite)(torch.from_numpy(image), torch.from_numpy(masks))
    np.testing.assert_array_equal(logits, expected[0].numpy())
    np.testing.assert_array_equal(soft_tissue, expected[1].numpy())
    result = Separator(backend)(phantom.image, phantom.masks)
    assert np.abs(result.upper - result.lower)[result.overlap].max() > 0.01
    assert Separator.from_pretrained(lite).backend.name == "torch"  # there is no ONNX file


def test_torch_runs_the_very_bytes_that_were_hashed(lite, monkeypatch):
    read_bytes, reads = type(lite).read_bytes, []

    def read(path):
        reads.append(path)
        return read_bytes(path)

    monkeypatch.setattr(type(lite), "read_bytes", read)
    create("torch", lite)
    assert reads == [lite]


def test_torch_weights_are_checked_too(lite):
    good = lite.read_bytes()
    lite.write_bytes(good[:-1] + b"?")
    with pytest.raises(WeightsError, match=r"small\.safetensors is damaged"):
        Separator.from_pretrained(lite, "torch")
    (lite.with_suffix(".json")).unlink()
    lite.write_bytes(good.replace(b'"lite\\"', b'"late\\"').replace(b'"lite"', b'"late"'))
    with pytest.raises(WeightsError, match="late"):
        Separator.from_pretrained(lite, "torch")


class TestShipped:
    """The weights inside the package."""

    def test_all_backends_agree(self, phantom):
        results = [
            Separator.from_pretrained(backend=name)(phantom.image, phantom.masks)
            for name, reason in session.available().items()
            if reason is None and name not in session.ENGINES  # which need one that was built
        ]
        for result in results[1:]:
            np.testing.assert_allclose(result.layers, results[0].layers, atol=1e-4)
            np.testing.assert_allclose(result.soft_tissue, results[0].soft_tissue, atol=1e-4)

    def test_phantoms_come_apart_better_than_by_an_equal_split(self):
        """With the edges and the soft tissue that radiographs have. Phantoms differ by 0.7 dB:
        six of them decide nothing."""
        from blsgan.evaluation.baselines import equal_split, ring_soft_tissue
        from blsgan.evaluation.metrics import psnr_db, region_mse
        from blsgan.synthesis.phantoms import joint_phantom

        separator, gains = Separator.from_pretrained(), []
        for seed in range(24):
            joint = joint_phantom(seed, edges=True)
            result = separator(joint.image, joint.masks)
            k = ring_soft_tissue(joint.image, joint.masks)
            ours, even = (
                psnr_db(region_mse(layers, joint.layers, joint.overlap))
                for layers in (result.layers, equal_split(joint.image, joint.masks, k))
            )
            gains.append(ours - even)
        assert np.mean(gains) > 1


def test_auto_takes_onnx_runtime(network):
    assert Separator.from_pretrained(network).backend.name == "onnx"


def test_auto_takes_what_is_there(network, monkeypatch, phantom):
    real = session.find_spec
    monkeypatch.setattr(session, "find_spec", lambda m: None if m == "onnxruntime" else real(m))
    if session.available()["openvino"] is None:
        assert Separator.from_pretrained(network).backend.name == "openvino"
    monkeypatch.setattr(session, "find_spec", lambda module: None)
    with pytest.raises(BackendError, match="no backend can run here: onnxruntime is not installed"):
        Separator.from_pretrained(network)


def test_a_backend_that_is_not_installed(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(session, "find_spec", lambda module: None)
    with pytest.raises(BackendError, match=r"openvino is not installed; pip install 'blsgan\["):
        Separator.from_pretrained(network, "openvino")


def test_engines_are_asked_for_by_their_own_file(network, monkeypatch):
    with pytest.raises(WeightsError, match=r"have no \.engine file; build one with `blsgan build-"):
        Separator.from_pretrained(network, "tensorrt")
    monkeypatch.setattr("blsgan.runtimes.libraries.find_spec", lambda module: None)
    reasons = session.available()
    assert "comes with JetPack" in reasons["tensorrt"]
    assert "pip install 'blsgan[tensorrt-rtx]'" in reasons["tensorrt-rtx"]
    monkeypatch.setattr("blsgan.runtimes.libraries.find_spec", lambda module: True)
    monkeypatch.setattr(device, "_GPU_FILES", ("/dev/none",))
    monkeypatch.setattr(session, "find_spec", lambda module: True)
    assert session.available()["tensorrt"] == "there is no NVIDIA GPU (none of /dev/none)"
    monkeypatch.setattr(device, "_GPU_FILES", ("/dev/null",))
    assert session.available()["tensorrt"] is None
    monkeypatch.setattr(session, "find_spec", lambda module: None)
    assert "cuda-bindings is not installed" in session.available()["tensorrt-rtx"]


def test_an_engine_without_its_manifest(tmp_path):
    (tmp_path / "a.engine").write_bytes(b"plan")
    with pytest.raises(WeightsError, match=r"a\.engine\.json does not exist"):
        Separator.from_pretrained(tmp_path / "a.engine")


def test_unknown_backend_and_threads(network):
    with pytest.raises(UsageError, match="'tensorflow' is unknown; choose one of auto"):
        Separator.from_pretrained(network, "tensorflow")
    with pytest.raises(UsageError, match="threads is 0"):
        Separator.from_pretrained(network, threads=0)


def test_weights_by_card_folder_and_file(carded):
    for path in (carded, carded.with_suffix(".json"), carded.parent, str(carded)):
        weights = Separator.from_pretrained(path).weights
        assert (weights.name, weights.architecture) == ("mine", "lite")
        assert weights.sha256 == hashlib.sha256(carded.read_bytes()).hexdigest()


def test_weights_without_a_card_are_taken_as_they_are(network):
    weights = Separator.from_pretrained(network).weights
    assert weights.name == "random"
    assert len(weights.sha256) == 64


def test_weights_that_do_not_say_how_layers_compose_are_of_before(tmp_path, network):
    import onnx

    model = onnx.load(network)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(WeightsError, match=r"old\.onnx was written by an earlier blsgan"):
        Separator.from_pretrained(tmp_path / "old.onnx")
    onnx.helper.set_model_props(
        model, {"blsgan.size_multiple": "8", "blsgan.law": "99", "blsgan.reach_px": "4"}
    )
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(WeightsError, match=r"odd\.onnx says size_multiple 8, law 99, reach_px 4"):
        Separator.from_pretrained(tmp_path / "odd.onnx")


def test_damaged_weights(carded):
    data = bytearray(carded.read_bytes())
    data[len(data) // 2] ^= 1
    carded.write_bytes(data)
    with pytest.raises(WeightsError, match=r"mine\.onnx is damaged: its SHA-256"):
        Separator.from_pretrained(carded)


@pytest.mark.parametrize("backend", ["onnx", pytest.param("openvino", marks=needs_openvino)])
def test_a_file_that_is_no_network(tmp_path, backend):
    (tmp_path / "a.onnx").write_bytes(b"this is no network at all")
    with pytest.raises(WeightsError, match=r"a\.onnx is not a network"):
        Separator.from_pretrained(tmp_path / "a.onnx", backend)


@pytest.mark.parametrize("backend", ["onnx", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("change", [{"mask_channels": 3}, {"output": "layers"}])
def test_another_architecture(tmp_path, make_network, backend, change):
    make_network(tmp_path / "a.onnx", **change)
    with pytest.raises(WeightsError, match=r"a\.onnx is of another architecture: it maps image"):
        Separator.from_pretrained(tmp_path / "a.onnx", backend)


def test_missing_weights(tmp_path):
    with pytest.raises(
        WeightsError, match="no weights for separation called 'nonsense'; known names: lite, or"
    ):
        Separator.from_pretrained("nonsense")
    with pytest.raises(WeightsError, match="does not exist"):
        Separator.from_pretrained(tmp_path / "a.onnx")
    with pytest.raises(WeightsError, match="not a weights file"):
        Separator.from_pretrained(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"holds 0 weights cards"):
        Separator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "card",
    [
        "",
        "[]",
        "{",
        '{"sha256": "abc"}',
        '{"sha256": {"a": 1}}',
        '{"architecture": {}}',
        "[" * 200_000,
    ],
    ids=range(7),
)
def test_damaged_card(carded, card):
    carded.with_suffix(".json").write_text(card)
    with pytest.raises(WeightsError, match=r"mine\.json"):
        Separator.from_pretrained(carded)


def test_a_file_the_backend_cannot_use(carded):
    with pytest.raises(WeightsError, match=r"no \.safetensors file"):
        Separator.from_pretrained(carded, "torch")
    carded.rename(carded.with_suffix(".safetensors"))
    with pytest.raises(WeightsError, match=r"no \.onnx file"):
        Separator.from_pretrained(carded.with_suffix(".safetensors"), "onnx")


def test_separating_imports_no_torch(network):
    code = (
        "import sys, numpy as np, blsgan\n"
        "masks = np.zeros((2, 64, 64), bool); masks[0, 5:40, 9:50] = masks[1, 30:60, 9:50] = True\n"
        "image = np.random.default_rng(0).random((64, 64))\n"
        f"blsgan.Separator.from_pretrained({str(network)!r})(image, masks)\n"
        "heavy = {'torch', 'scipy', 'cv2', 'skimage', 'matplotlib', 'pydicom', 'rich', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
