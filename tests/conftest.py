"""What several packages' tests share: a network of the generator's signature, joints as files."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

import blsgan  # noqa: F401  (before any test can load a runtime: it stops their telemetry)

# The same examples in every run: a change is judged by what it changes. To search further:
# pytest --hypothesis-profile=default
settings.register_profile("same-examples", derandomize=True)
settings.load_profile("same-examples")


@dataclass(frozen=True)
class JointFiles:
    """A joint on disk, by the public dataset's naming, and its arrays."""

    image: Path
    upper: Path
    lower: Path
    pixels: np.ndarray  # uint8 or uint16 [H,W], what the file holds
    masks: np.ndarray  # bool [2,H,W]


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """A randomly initialised ONNX network with the signature of the shipped one."""
    path = tmp_path_factory.mktemp("network") / "random.onnx"
    write_network(path)
    return path


@pytest.fixture(scope="session")
def make_network():
    """The function that writes such a network, for tests that need another one."""
    return write_network


@pytest.fixture(scope="session")
def phantom():
    """A 256x256 joint phantom with overlap."""
    from blsgan.synthesis.phantoms import joint_phantom

    return joint_phantom(3)


@pytest.fixture(scope="session")
def write_joint(phantom):
    """Write a phantom (default: ``phantom``) as image and masks: (folder, name, ...) -> files."""

    def write(folder: Path, name: str = "joint", *, suffix: str = ".png", source=None, bits=16):
        from PIL import Image

        source = phantom if source is None else source
        folder.mkdir(parents=True, exist_ok=True)
        dtype = np.uint16 if bits == 16 else np.uint8
        pixels = np.rint(source.image * (2**bits - 1)).astype(dtype)
        files = [folder / f"{name}{suffix}"]
        Image.fromarray(pixels).save(files[0])
        for bone, mask in zip(("upper", "lower"), source.masks, strict=True):
            files.append(folder / f"{name}_mask_{bone}.bmp")
            Image.fromarray(mask.astype(np.uint8) * 255).save(files[-1])
        return JointFiles(*files, pixels, source.masks)

    return write


def write_network(
    path: Path, *, seed: int = 0, mask_channels: int = 2, output: str = "share_logits"
):
    """Two convolutions, and soft tissue from the mean of their features; float32, free B, H, W."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)

    def weights(name, *shape, scale=0.3):
        values = (rng.standard_normal(shape) * scale).astype(np.float32)
        return numpy_helper.from_array(values, name)

    def port(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    width = 8
    nodes = [
        helper.make_node("Concat", ["image", "masks"], ["stacked"], axis=1),
        helper.make_node("Conv", ["stacked", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], [output], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["r0"], ["mean"]),
        helper.make_node("Conv", ["mean", "w2"], ["k_logit"]),
        helper.make_node("Sigmoid", ["k_logit"], ["k_unit"]),
        helper.make_node("Mul", ["k_unit", "k_max"], ["k_map"]),
        helper.make_node("Shape", ["image"], ["size"]),
        helper.make_node("Expand", ["k_map", "size"], ["soft_tissue"]),
    ]
    initializers = [
        weights("w0", width, 1 + mask_channels, 3, 3),
        weights("b0", width),
        weights("w1", 2, width, 3, 3),
        weights("b1", 2),
        weights("w2", 1, width, 1, 1),
        numpy_helper.from_array(np.array(0.95, np.float32), "k_max"),
    ]
    graph = helper.make_graph(
        nodes,
        "random",
        [port("image", "B", 1, "H", "W"), port("masks", "B", mask_channels, "H", "W")],
        [port(output, "B", 2, "H", "W"), port("soft_tissue", "B", 1, "H", "W")],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    described = {"blsgan.size_multiple": "8", "blsgan.law": "8", "blsgan.reach_px": "4"}
    helper.set_model_props(model, described)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _joint_names(validation, count):
    from blsgan.data.splits import is_validation

    names = (f"{i:05d}_L_2" for i in range(500))
    return [name for name in names if is_validation(name) == validation][:count]


def _save(array, path):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 97} if path.suffix == ".jpg" else {}
    Image.fromarray(np.round(array * 255).astype(np.uint8)).save(path, **options)


def write_visit(root, joint, visit, phantom):
    """Writes one radiograph with masks and background; returns its entry in a list file."""
    folder = "Dataset_cases_anonymization"
    entry = {
        "image": f"{folder}/{joint}/{visit}.jpg",
        "upper": f"{folder}/{joint}/{visit}_mask_upper.bmp",
        "lower": f"{folder}/{joint}/{visit}_mask_lower.bmp",
        "background": f"{folder}/background/{joint}_{visit}.jpg",
    }
    pictures = (phantom.image, phantom.masks[0], phantom.masks[1], phantom.background)
    for path, picture in zip(entry.values(), pictures, strict=True):
        _save(picture, root / path)
    return entry


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Three validation joints and one training joint, each seen with and without overlap."""
    from blsgan.synthesis.phantoms import joint_phantom

    root = tmp_path_factory.mktemp("joints") / "Data"
    entries = []
    for seed, joint in enumerate([*_joint_names(True, 3), *_joint_names(False, 1)]):
        for visit, gap in (("a", -14.0), ("b", 3.0)):
            phantom = joint_phantom(seed, gap_px=gap)
            entries.append(write_visit(root, joint, visit, phantom))
    (root / "LS_K1_all_train").write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="session")
def images(dataset):
    """The entries of ``dataset`` that belong to validation joints."""
    from blsgan.data.dataset import load_root
    from blsgan.data.splits import is_validation

    return [image for image in load_root(dataset) if is_validation(image.joint)]


@pytest.fixture(scope="session")
def fakes():
    """The module tests/fakes.py: stand-ins for TensorRT and for CUDA, which say so."""
    return _neighbour("fakes")


@pytest.fixture(scope="session")
def hand_of_joints():
    """A hand that the networks know, of a seed (tests/phantom_hands.py)."""
    return _neighbour("phantom_hands").hand_of_joints


@pytest.fixture
def watched_machine(tmp_path_factory):
    """A machine with an empty home folder whose connections are seen (tests/watching.py)."""
    return _neighbour("watching").WatchedMachine(tmp_path_factory.mktemp("machine"))


def _neighbour(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_machine(fakes, monkeypatch):
    """A machine with a fake GPU and a fake TensorRT: (generation, GPU's facts) -> both of them."""

    def install(generation="10", **gpu):
        cuda = fakes.FakeCuda(**gpu)
        name = "tensorrt_rtx" if generation == "rtx" else "tensorrt"
        module = fakes.fake_tensorrt(generation, cuda, name)
        monkeypatch.setitem(sys.modules, name, module)
        for user in ("blsgan.runtimes.gpu", "blsgan.runtimes.engine"):
            monkeypatch.setattr(f"{user}.cuda_runtime", lambda: cuda)
        return module, cuda

    return install


# By the exponential law: the shipped network has the paper's.
_SMALL = {"widths": [8, 8, 16, 16], "blocks": [1, 1, 1, 1], "law": 7.0}


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory):
    """``small.safetensors``: a network whose answers depend on everything it sees."""
    torch = pytest.importorskip("torch", reason="exporting needs torch")
    from blsgan.models import build_generator
    from blsgan.models.weights import safetensors_bytes

    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_generator("lite", _SMALL)
        with torch.no_grad():
            generator.head_convolution.weight.normal_(std=0.1)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    path.write_bytes(safetensors_bytes(generator))
    return path


@pytest.fixture(scope="session")
def exported(small_weights, tmp_path_factory):
    """``small_weights`` as an ONNX model of the whole separation, with free sizes."""
    from blsgan.deploy.export import export

    return export(small_weights, tmp_path_factory.mktemp("exported") / "model.onnx")
