"""What is installed, what was compiled, which backends can run; every "cannot" with its reason.

One report serves ``blsgan info`` (the facts, for a bug report) and ``blsgan doctor`` (the checks).
Whatever may be slow, crash or print is tried in a process of its own: torch is never imported here.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from blsgan import __version__
from blsgan.errors import BlsganError
from blsgan.runtimes import libraries, session
from blsgan.runtimes.providers import PROVIDERS, missing
from blsgan.tasks import task

if TYPE_CHECKING:
    from blsgan.tasks.task import Weights

PROBE_TIMEOUT_S = 120
"""A probe that takes longer is reported as hanging; importing torch from a cold disk takes 20 s."""

PACKAGES = (
    "numpy", "pillow", "opencv-python-headless", "scikit-image", "scipy", "pydicom", "pylibjpeg",
    "pylibjpeg-openjpeg", "python-gdcm", "pyjpegls", "onnxruntime", "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx", "openvino",
    "torch", "safetensors", "onnx", "tensorrt", "tensorrt-rtx", "cuda-bindings", "nvidia-modelopt",
)  # fmt: skip

_ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")

# One joint of two bones, through the real thing: weights, network, split, composition.
_SEPARATE = """
import json, sys, numpy as np
from blsgan.tasks.separation import Separator
image = np.full((96, 96), 0.1, np.float32)
image[16:80, 24:72] = np.linspace(0.3, 0.6, 64, dtype=np.float32)[:, None]
masks = np.zeros((2, 96, 96), bool)
masks[0, 16:52, 24:72] = masks[1, 44:80, 24:72] = True
separator = Separator.from_pretrained(backend=sys.argv[1], device=sys.argv[2])
result = separator(image, masks)
error = float(np.abs(result.reconstruction - image)[masks.any(0)].max())
print(json.dumps({"version": separator.backend.version, "error": error}))
"""

_TORCH = """
import json, torch
facts = {"version": torch.__version__, "cuda": torch.version.cuda, "devices": []}
facts["threads"] = torch.get_num_threads()
for index in range(torch.cuda.device_count()):
    major, minor = torch.cuda.get_device_capability(index)
    name = torch.cuda.get_device_name(index)
    facts["devices"].append({"name": name, "capability": f"{major}.{minor}"})
print(json.dumps(facts), flush=True)
from blsgan import ops
def run(device):
    image = torch.rand(1, 1, 4, 4, device=device)
    masks = torch.ones(1, 2, 4, 4, device=device, dtype=torch.bool)
    k = torch.full((1,), 0.3, device=device)
    layers = ops.split_attenuation(torch.zeros(1, 2, 4, 4, device=device), image, masks, k)
    error = float((ops.compose_layers(layers, masks, k) - image).abs().max())
    assert error < 1e-5, f"split and composition differ by {error:.1e}"
for device in ["cpu"] + [f"cuda:{index}" for index in range(len(facts["devices"]))]:
    try:
        run(device)
        outcome = None
    except Exception as error:
        outcome = str(error).strip().splitlines()[0]
    print(json.dumps({"device": device, "reason": outcome}), flush=True)
"""


_ENGINE_LIBRARY = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
members = getattr(module, "ComputeCapability", None)
names = list(members.__members__) if members else []
found = [f"{n[2:-1]}.{n[-1]}" for n in names if n.startswith("SM") and n[2:].isdigit()]
print(json.dumps({"version": module.__version__, "capabilities": found}))
"""

_GPU = """
import dataclasses, json
from blsgan.runtimes.gpu import this_gpu
print(json.dumps(dataclasses.asdict(this_gpu())))
"""


@dataclass(frozen=True)
class Check:
    """One thing that can or cannot be done here. ``reason`` says why not, None where it can."""

    name: str
    works: bool
    detail: str = ""
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """All that is known about this installation; :meth:`as_dict` is what ``--json`` prints."""

    versions: dict[str, str | None]
    system: dict[str, Any]
    build: dict[str, Any]
    weights: dict[str, Any]
    torch: dict[str, Any]
    compiled: list[Check]
    backends: list[Check]
    notes: list[str] = field(default_factory=list)

    @property
    def can_separate(self) -> bool:
        """Whether ``blsgan separate`` works: kernels, weights and at least one backend.

        TensorRT does not count: it needs an engine that somebody built.
        """
        kernels = next(check for check in self.compiled if check.name == "numpy kernels")
        return kernels.works and any(
            check.works for check in self.backends if check.name not in libraries.FLAVOURS
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {"blsgan": __version__, "can_separate": self.can_separate, **asdict(self)}


def for_strangers(report: Report) -> dict[str, Any]:
    """The report for a table of who ran what: nothing in it tells whose machine this is.

    No names of files, folders, hosts or users, and no serial numbers. Beside what ``as_dict`` has:
    the board and its software, as a Jetson's own files say.
    """
    facts = report.as_dict()
    facts["system"] = {
        **{name: facts["system"][name] for name in ("python", "machine", "cores")},
        "kernel": platform.release(),
        "memory_gb": _memory_gb(),
        "board": _first_line("/proc/device-tree/model"),
        "jetson": _first_line("/etc/nv_tegra_release"),
    }
    for file in facts["weights"].get("files", ()):
        file["path"] = Path(file["path"]).name
    facts["notes"] = [note for note in facts["notes"] if os.sep not in note]
    return cast("dict[str, Any]", _without_identifiers(facts))


# Devices are the same everywhere; any other path may name somebody.
_PATH = re.compile(r"(?<![^\s,;:()'\"])(?!/dev/|/proc/)(?:<path>|[^\s,;:()'\"]*/)[^\s,;:()'\"]*")


def _without_identifiers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_identifiers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_identifiers(each) for each in value]
    if not isinstance(value, str):
        return value
    # What may have spaces in it first: where a name with one ends cannot be seen from outside.
    for folder in sorted(_own_folders(), key=len, reverse=True):
        value = value.replace(folder, "<path>")
    value = _PATH.sub("<path>", value)
    node = platform.node()
    for secret in sorted({node, node.partition(".")[0], _user()} - {""}, key=len, reverse=True):
        value = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "<name>", value)
    return value


def _own_folders() -> set[str]:
    folders = {os.path.expanduser("~"), os.getcwd(), sys.prefix, str(Path(__file__).parents[1])}
    return folders - {"", "~", os.sep}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        return ""


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").splitlines()[0].strip("\0 #")
    except (OSError, IndexError):
        return None


@dataclass(frozen=True)
class _Probe:
    """What a probe's process printed as JSON lines, and why it ended if it did not end well."""

    lines: list[dict[str, Any]]
    reason: str | None


def _probe(code: str, *arguments: str, timeout_s: float = PROBE_TIMEOUT_S) -> _Probe:
    """Run ``code`` in a process of its own; a crash, a hang and an exception become reasons."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _Probe([], f"it did not answer within {timeout_s:g} s")
    except OSError as error:
        return _Probe([], f"{sys.executable} cannot be started ({error.strerror})")
    lines = []
    for line in done.stdout.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # a library's greeting
        if isinstance(value, dict):
            lines.append(value)
    if done.returncode == 0:
        return _Probe(lines, None if lines else "it printed nothing")
    if done.returncode < 0:
        return _Probe(lines, f"it crashed (signal {-done.returncode})")
    last = done.stderr.strip().splitlines() or ["it printed nothing"]
    # "package.Error: sentence" of a traceback's last line: the sentence is what the user can use.
    return _Probe(lines, last[-1].partition(": ")[2] or last[-1])


def collect() -> Report:
    """Look at everything. Takes a few seconds where torch is installed, and writes nothing."""
    weights, weights_notes = _weights()
    with ThreadPoolExecutor(4) as pool:
        torch_probe = pool.submit(_probe, _TORCH) if find_spec("torch") else None
        kernels, build = _kernels()
        backends = list(pool.map(_separating_backend, _backend_names()))
        backends += pool.map(_separating_on_gpu, PROVIDERS)
        engines = _engines()
        probed = torch_probe.result() if torch_probe else None
    torch, torch_ops = _torch(probed, build)
    return Report(
        versions=_versions(),
        system={
            "python": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "package": str(Path(__file__).resolve().parent),
        },
        build=build,
        weights=weights,
        torch=torch,
        compiled=[kernels, *torch_ops],
        backends=[*backends, *engines],
        notes=[*weights_notes, *_two_of_one()],
    )


def _versions() -> dict[str, str | None]:
    return {"blsgan": __version__, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None


def _kernels() -> tuple[Check, dict[str, Any]]:
    """The NumPy kernels of ``blsgan._native`` and what they were compiled with."""
    try:
        from blsgan.ops import native

        build: dict[str, Any] = native.build_info()
    except (BlsganError, ImportError) as error:
        return Check("numpy kernels", False, reason=str(error)), {}
    level = build.get("cpu_dispatch", "unknown")
    if build.get("version") != __version__:
        reason = (
            f"they were compiled for blsgan {build.get('version')}, but this is {__version__}:"
            " install blsgan again"
        )
        return Check("numpy kernels", False, level, reason), build
    return Check("numpy kernels", True, level), build


def _torch(probe: _Probe | None, build: dict[str, Any]) -> tuple[dict[str, Any], list[Check]]:
    """torch's own facts, and whether its ops run on the CPU and on each GPU."""
    cpu, cuda = "torch ops, cpu", "torch ops, cuda"
    if probe is None:
        reason = "torch is not installed: pip install 'blsgan[train]'"
        return {"installed": False}, [
            Check(cpu, False, reason=reason),
            Check(cuda, False, reason=reason),
        ]
    if not probe.lines:
        reason = f"torch is installed but does not load: {probe.reason}"
        return {"installed": True, "reason": probe.reason}, [
            Check(cpu, False, reason=reason),
            Check(cuda, False, reason=reason),
        ]
    facts: dict[str, Any] = {"installed": True, **probe.lines[0]}
    tried = {line["device"]: line["reason"] for line in probe.lines[1:]}
    if "cpu" not in tried:
        reason = probe.reason or "unknown"
        return facts, [Check(cpu, False, reason=reason), Check(cuda, False, reason=reason)]
    abi = f"stable ABI of torch {build.get('torch_abi') or '?'}, running under {facts['version']}"
    checks = [Check(cpu, tried["cpu"] is None, abi, tried["cpu"])]
    architectures = build.get("cuda_architectures") or ""
    compiled = f"compiled for {architectures.replace(';', ', ')}" if architectures else ""
    if not architectures:
        why = build.get("cuda_reason") or "the build does not say why"
        checks.append(Check(cuda, False, compiled, f"the CUDA kernels were not compiled: {why}"))
    elif facts["cuda"] is None:
        checks.append(Check(cuda, False, compiled, f"torch {facts['version']} has no CUDA"))
    elif not facts["devices"]:
        checks.append(Check(cuda, False, compiled, "torch sees no GPU (see nvidia-smi)"))
    for index, device in enumerate(facts["devices"] if architectures and facts["cuda"] else ()):
        outcome = tried.get(f"cuda:{index}", probe.reason)
        name = f"{cuda}:{index}"
        checks.append(Check(name, outcome is None, f"{device['name']}; {compiled}", outcome))
    return facts, checks


def _backend_names() -> list[str]:
    return [name for name in session.NAMES if name not in session.ENGINES]


def _separating_backend(name: str) -> Check:
    """Separate a small joint with one backend, in a process of its own."""
    if reason := session.available()[name]:
        return Check(name, False, reason=reason)
    return _separated(name, name, "cpu")


def _separating_on_gpu(device: str) -> Check:
    """The same by ONNX Runtime on a device, where all that it needs seems to be there."""
    name = f"onnx, {device}"
    if reason := missing(device):
        return Check(name, False, reason=reason)
    return _separated(name, "onnx", device)


def _separated(name: str, backend: str, device: str) -> Check:
    probe = _probe(_SEPARATE, backend, device)
    if not probe.lines or probe.reason:
        return Check(name, False, reason=probe.reason)
    answer = probe.lines[-1]
    detail = f"{answer['version']}, reconstruction error {answer['error']:.1e}"
    if not answer["error"] <= 1e-5:
        return Check(name, False, detail, "its layers do not add up to the image again")
    return Check(name, True, detail)


def _engines() -> list[Check]:
    """TensorRT and TensorRT-RTX: what each could do here, running engines or only building them."""
    checks = []
    for name in session.ENGINES:
        reason = session.available()[name]
        module = libraries.FLAVOURS[name].module
        if libraries.missing(name) is not None:
            checks.append(Check(name, False, reason=reason))
            continue
        probe = _probe(_ENGINE_LIBRARY, module)
        if not probe.lines or probe.reason:
            checks.append(Check(name, False, reason=f"{module} does not load: {probe.reason}"))
            continue
        facts = probe.lines[-1]
        detail = str(facts["version"])
        if facts["capabilities"]:
            detail += f", builds engines for {', '.join(facts['capabilities'])} without a GPU"
        if reason is None:
            gpu = _probe(_GPU)
            reason = gpu.reason
            if gpu.lines and reason is None:
                found = gpu.lines[-1]
                detail += f", runs engines on {found['name']} ({found['compute_capability']})"
        checks.append(Check(name, reason is None, detail, reason))
    return checks


def _two_of_one() -> list[str]:
    """ONNX Runtime comes in packages that write the same files: only the last one is there."""
    found = [name for name in _ONNX_RUNTIMES if _version(name) is not None]
    if len(found) < 2:
        return []
    return [
        f"{' and '.join(found)} are both installed, and the later one wrote over the other: "
        "uninstall both, then install one."
    ]


def _weights() -> tuple[dict[str, Any], list[str]]:
    """Where the shipped weights are, and whether each file is the one its card describes.

    Those of separation decide ``reason``; without a whole segmenter or locator only masks cannot be
    predicted or hands not be found, which is a note.
    """
    try:
        weights = task.find_weights()
    except BlsganError as error:
        return {"name": task.SEPARATION.weights, "files": [], "reason": str(error)}, []
    files, notes = _weights_files(weights)
    reason = next((f["reason"] for f in files if f["reason"]), None)
    for other, lacks in (
        (task.SEGMENTATION, "masks cannot be predicted"),
        (task.LOCATION, "hands cannot be found"),
    ):
        try:
            found, more = _weights_files(task.find_weights(task=other))
        except BlsganError as error:
            found, more = [], [f"{lacks}: {error}"]
        files += found
        notes += [*more, *(f"{lacks}: {file['reason']}" for file in found if file["reason"])]
    facts = {"name": weights.name, "architecture": weights.architecture}
    return {**facts, "files": files, "reason": reason}, notes


def _weights_files(weights: Weights) -> tuple[list[dict[str, Any]], list[str]]:
    files: list[dict[str, Any]] = []
    notes: list[str] = []
    for path in (weights.onnx, weights.safetensors):
        if path is None or not path.exists():
            continue
        entry: dict[str, Any] = {"path": str(path), "card_sha256": weights.hashes.get(path.name)}
        try:
            entry["sha256"], entry["reason"] = weights.load(path).sha256, None
        except BlsganError as error:
            entry["sha256"], entry["reason"] = None, str(error)
        if entry["card_sha256"] is None:
            notes.append(f"{path} has no hash in its card, so damage to it cannot be seen.")
        files.append(entry)
    return files, notes
