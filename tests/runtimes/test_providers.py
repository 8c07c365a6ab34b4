"""ONNX Runtime on GPUs, by FAKES with the real names (test_surfaces.py): no GPU was there.

What a device is asked for, what is refused, and that nothing falls back to the CPU unseen.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from blsgan import cli
from blsgan.errors import BackendError, OutputError, UsageError, WeightsError
from blsgan.runtimes import device as devices
from blsgan.runtimes import providers
from blsgan.runtimes.cache import cache_folder
from blsgan.runtimes.device import Device, parse_device
from blsgan.tasks import task
from blsgan.tasks.backend import create
from blsgan.tasks.separation import Separator

GPUS = ("cuda", "tensorrt", "tensorrt-rtx")


@pytest.fixture
def machine(fakes, monkeypatch, tmp_path):
    """A machine with a fake GPU and fake packages; gives the fake ONNX Runtime."""
    module = fakes.fake_onnxruntime()
    plugin = fakes.fake_rtx_plugin(module)
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    monkeypatch.setattr("blsgan.runtimes.onnx.imported", lambda name: module)
    monkeypatch.setattr(providers, "find_spec", lambda name: True)
    monkeypatch.setattr(providers, "_library", lambda kind: Path(__file__))
    monkeypatch.setattr(devices, "_GPU_FILES", ("/dev/null",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return module


@pytest.mark.parametrize("kind", GPUS)
def test_a_device_computes_what_the_cpu_does_and_is_asked_for_nothing_less(
    machine, network, phantom, tmp_path, monkeypatch, kind
):
    expected = Separator.from_pretrained(network, device="cpu")(phantom.image, phantom.masks)
    separator = Separator.from_pretrained(network, device=kind)
    found = separator(phantom.image, phantom.masks)
    np.testing.assert_array_equal(found.layers, expected.layers)
    assert separator.backend.facts() == {
        "name": "onnx", "version": machine.__version__, "device": f"{kind}:0",
    }  # fmt: skip
    assert len(machine.asked.runs) == 2  # the first one when it was loaded
    options = machine.asked.options[providers.PROVIDERS[kind]]
    assert not {name for name in options if name.endswith(("fp16_enable", "int8_enable"))} or {
        options[f"trt_{name}_enable"] for name in ("fp16", "bf16", "int8")
    } == {"0"}
    assert providers.os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert machine.asked.severities[-1] == 2
    cached = [value for name, value in options.items() if name.endswith("cache_path")]
    sha256 = hashlib.sha256(network.read_bytes()).hexdigest()
    if kind == "cuda":
        assert options == {
            "device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC",
        }  # fmt: skip
    else:
        assert {Path(path).parent.parent for path in cached} == {
            tmp_path / "cache" / "blsgan" / "onnxruntime"
        }
        assert {Path(path).name for path in cached} == {sha256[:16]}  # other weights, other kernels
        shapes = next(value for name, value in options.items() if name.endswith("max_shapes"))
        assert shapes == "image:8x1x512x512,masks:8x2x512x512"
    assert machine.asked.entries["session.record_ep_graph_assignment_info"] == "1"


@pytest.mark.parametrize("kind", GPUS)
@pytest.mark.parametrize(
    ("does", "words"),
    [
        ({"leaves_out": True}, "ONNX Runtime left it out"),
        ({"fails": "CUDA failure 700: illegal\nmore"}, r"the first run \(CUDA failure 700: i"),
        ({"multiplies": 1.01}, "does not compute what the CPU does: (share_logits|soft_tissue) "),
        ({"multiplies": float("nan")}, "differs by nan, more than 1e-03"),
        ({"to_the_cpu": ("Shape", "Conv")}, "leaves convolutions of this network to the CPU"),
    ],
    ids=range(5),
)  # fmt: skip
def test_what_goes_wrong_on_a_gpu_is_an_error_and_no_fall_back(machine, network, kind, does, words):
    vars(machine.does).update(does)
    with pytest.raises(BackendError, match=words) as caught:
        Separator.from_pretrained(network, device=kind)
    assert f"device {kind}:0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cuda_library_that_is_missing_is_named_with_its_origin(machine, network, monkeypatch):
    machine.does.leaves_out = True
    for kind, library, words in (
        (
            "cuda",
            "libcublasLt.so.13",
            r"libcublasLt\.so\.13 is not there; pip install .onnxruntime-g",
        ),
        ("tensorrt", "libnvinfer.so.10", r"libnvinfer\.so\.10 is not there; install NVIDIA's Tens"),
        ("cuda", "libcuda.so.1", r"libcuda\.so\.1 is not there; install NVIDIA's driver"),
    ):

        def load(path, library=library):
            raise OSError(f"{library}: cannot open shared object file: No such file or directory")

        monkeypatch.setattr(providers.ctypes, "CDLL", load)
        with pytest.raises(BackendError, match=words):
            Separator.from_pretrained(network, device=kind)


def test_a_driver_that_is_too_old_is_named_in_the_words_of_cuda(machine, network, monkeypatch):
    """As onnxruntime-gpu 1.31.1 says it, its CUDA provider loaded, beside a libcuda that fails."""
    said = (
        "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static"
        " onnxruntime::CUDAExecutionProviderInfo onnxruntime::CUDAExecutionProviderInfo::"
        "FromProviderOptions(const onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : "
        'provider_options_utils.h:187 Parse Failed to parse provider option "device_id": CUDA '
        "failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; "
        "hostname=ward7 ; file=/onnxruntime_src/onnxruntime/core ; line=70 ; \n"
    )

    real = machine.InferenceSession

    def fails(*arguments, providers, **options):
        if providers == ["CPUExecutionProvider"]:
            return real(*arguments, providers=providers, **options)
        raise RuntimeError(said)

    monkeypatch.setattr(machine, "InferenceSession", fails)
    with pytest.raises(BackendError) as caught:
        Separator.from_pretrained(network, device="cuda")
    assert str(caught.value) == (
        f"device cuda:0 cannot run {network} (CUDA failure 35: CUDA driver version is insufficient "
        "for CUDA runtime version); take another device."
    )
    said = said.partition("CUDA failure")[0] + "no words of CUDA."
    with pytest.raises(
        BackendError, match=r"\(provider_options_utils\.h:187 .* no words of CUDA\)"
    ):
        Separator.from_pretrained(network, device="cuda")


def test_the_plugin_without_a_driver_and_without_such_a_gpu(machine, network, monkeypatch):
    def register(name, path):
        raise RuntimeError(
            "Failed to load library x.so with error: libcuda.so.1: cannot open shared object file"
        )

    with pytest.raises(BackendError, match="TensorRT-RTX sees 1 GPUs here"):
        Separator.from_pretrained(network, device="tensorrt-rtx:1")
    monkeypatch.setattr(machine, "register_execution_provider_library", register)
    with pytest.raises(BackendError, match=r"libcuda\.so\.1 is not there; install NVIDIA's driver"):
        Separator.from_pretrained(network, device="tensorrt-rtx")
    monkeypatch.delattr(machine, "register_execution_provider_library")
    with pytest.raises(BackendError, match=r"takes no plugins; pip install 'onnxruntime>=1\.24'"):
        Separator.from_pretrained(network, device="tensorrt-rtx")


def test_a_cache_folder_that_cannot_be_written(machine, network, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(OutputError, match=r"cache folder .* cannot be written .* XDG_CACHE_HOME"):
        Separator.from_pretrained(network, device="tensorrt-rtx")
    Separator.from_pretrained(network, device="cuda")  # which compiles nothing


def test_a_cache_folder_is_its_users_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder("a", "b")
    assert folder == tmp_path / "blsgan" / "a" / "b"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(OutputError, match="can be written by others, and what lies in it is run"):
        cache_folder("a", "b")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("c") == tmp_path / "home" / ".cache" / "blsgan" / "c"


def test_gpu_takes_what_is_there_or_says_everything_that_is_missing(machine, network, monkeypatch):
    assert str(create(path_or_name=network, device="gpu").device) == "tensorrt-rtx:0"
    plugin = providers._PLUGIN
    monkeypatch.setattr(providers, "find_spec", lambda name: None if name == plugin else True)
    assert str(create(path_or_name=network, device="gpu:3").device) == "cuda:3"
    assert machine.asked.options["CUDAExecutionProvider"]["device_id"] == "3"
    monkeypatch.setattr(providers, "_library", lambda kind: Path("/none"))
    with pytest.raises(BackendError) as caught:
        create(path_or_name=network, device="gpu")
    for words in ("pip install 'blsgan[rtx]'", "onnxruntime-gpu[cuda,cudnn]", "build-engine"):
        assert words in str(caught.value)


def test_words_that_are_no_device_and_what_does_not_go_together(network):
    assert parse_device("tensorrt-rtx:1") == Device("tensorrt-rtx", 1)
    for text in ("tpu", "cuda:", "cuda:x", "cpu:0", "cuda:123", "", "CUDA"):
        with pytest.raises(UsageError, match="is unknown; choose one of cpu, gpu, cuda"):
            parse_device(text)
    with pytest.raises(UsageError, match="backend 'openvino' runs on the CPU, not on cuda:0"):
        Separator.from_pretrained(network, "openvino", device="cuda")
    with pytest.raises(UsageError, match="an engine runs on device gpu, not on cuda:0"):
        Separator.from_pretrained(network, "tensorrt", device="cuda")


def test_tensorrt_gets_batches_and_sizes_that_it_compiled_for(machine, network):
    backend = create("onnx", network, device="tensorrt")
    image, masks = np.zeros((19, 1, 32, 32), np.float32), np.ones((19, 2, 32, 32), np.float32)
    image[:] = np.arange(19, dtype=np.float32)[:, None, None, None] / 19
    answers = backend.run(image, masks)
    assert [run["image"][0] for run in machine.asked.runs] == [1, 8, 8, 3]
    for answer, expected in zip(answers, create("onnx", network).run(image, masks), strict=True):
        np.testing.assert_allclose(answer, expected, atol=1e-6)
    large = np.zeros((1, 1, 520, 32), np.float32)
    with pytest.raises(
        BackendError, match=r"to \[8, 1, 512, 512\], not \[1, 1, 520, 32\]; take --"
    ):
        backend.run(large, np.zeros((1, 2, 520, 32), np.float32))


@pytest.mark.parametrize("of", [task.SEGMENTATION, task.LOCATION], ids=lambda of: of.name)
def test_every_shipped_network_is_tried_when_it_is_loaded(machine, of):
    backend = create("onnx", None, None, of, "cuda")
    assert machine.asked.runs == [{"image": (1, 1, of.grid_px, of.grid_px)}]
    assert str(backend.device) == "cuda:0"
    machine.does.multiplies = 1.01
    with pytest.raises(BackendError, match="does not compute what the CPU does"):
        create("onnx", None, None, of, "cuda")


def test_another_process_gets_the_same_device(machine, network):
    backend = pickle.loads(pickle.dumps(create("onnx", network, device="cuda:1")))
    assert backend.device == Device("cuda", 1)


@pytest.fixture
def half(network, tmp_path):
    """A network that calls itself fp16, as `blsgan export --precision fp16` marks one."""
    import onnx

    model = onnx.load(network)
    entry = model.metadata_props.add()
    entry.key, entry.value = "blsgan.precision", "fp16"
    onnx.save(model, tmp_path / "half.onnx")
    return tmp_path / "half.onnx"


def write_report(model, passed, sha256=None):
    sha256 = sha256 or hashlib.sha256(model.read_bytes()).hexdigest()
    report = {
        "schema": 1, "kind": "parity", "blsgan": "0", "onnx": {"sha256": sha256},
        "weights": {"sha256": "a"}, "ports": {}, "versions": {}, "cases": [], "passed": True,
        "lowered": {"precision": "fp16", "gate": {"passed": passed}},
    }  # fmt: skip
    model.with_suffix(".parity.json").write_text(json.dumps(report))


@pytest.mark.parametrize("device", [None, "cuda"])
def test_a_lower_precision_shows_how_it_did_at_its_gate(machine, half, device, caplog):
    with pytest.raises(
        WeightsError, match=r"half\.onnx is fp16, and half\.parity\.json, which says"
    ):
        Separator.from_pretrained(half, "onnx", device=device)
    write_report(half, True, "b" * 64)  # of another model
    with pytest.raises(WeightsError, match="is missing or of another model; copy both"):
        Separator.from_pretrained(half, "onnx", device=device)
    write_report(half, True)
    assert Separator.from_pretrained(half, "onnx", device=device).backend.name == "onnx"
    assert "failed its gate" not in caplog.text
    write_report(half, False)
    Separator.from_pretrained(half, "onnx", device=device)
    assert "is fp16 and failed its gate; it was written by force" in caplog.text


def test_the_command_and_its_record(network, write_joint, tmp_path, monkeypatch, capsys):
    joint = write_joint(tmp_path)
    arguments = ["separate", str(joint.image), "-o", str(tmp_path / "out"), "--no-panels"]
    arguments += ["--weights", str(network)]
    monkeypatch.setattr(devices, "_GPU_FILES", ("/dev/none",))
    assert cli.main([*arguments, "--device", "gpu"]) == 1
    assert "no GPU can be used: tensorrt-rtx: " in capsys.readouterr().err
    assert cli.main([*arguments, "--device", "tpu"]) == 2
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "out" / "joint.json").read_text())
    assert record["backend"]["device"] == "cpu"


def test_the_masks_that_are_predicted_run_on_the_same_device(
    machine, network, write_joint, tmp_path
):
    joint = write_joint(tmp_path / "in")
    shutil.copy(joint.image, tmp_path / "bare.png")
    arguments = ["separate", str(tmp_path / "bare.png"), "-o", str(tmp_path / "out")]
    assert cli.main([*arguments, "--weights", str(network), "--device", "cuda"]) == 0
    record = json.loads((tmp_path / "out" / "bare.json").read_text())
    assert record["backend"] == {
        "name": "onnx", "version": machine.__version__, "device": "cuda:0",
    }  # fmt: skip
    masks = json.loads((tmp_path / "out" / "bare_mask.json").read_text())
    assert masks["backend"]["device"] == "cuda:0"


def test_the_real_plugin_says_in_one_sentence_why_it_cannot_run(network, monkeypatch, tmp_path):
    pytest.importorskip(providers._PLUGIN, reason="the extra rtx is not installed")
    if devices.no_gpu() is None:
        pytest.skip("there is a GPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(devices, "_GPU_FILES", ("/dev/null",))  # so that it is really loaded
    with pytest.raises(BackendError, match=r"libcuda\.so\.1 is not there|sees 0 GPUs"):
        Separator.from_pretrained(network, device="tensorrt-rtx")
