"""Times the fused ops beside eager PyTorch and torch.compile of the same formula.

All variants of a row run in turns, one measured call each a round, so that whatever else the
machine does hits all of them alike; the ratios are what counts. The roof is the copy bandwidth of
the same machine, on the same number of threads, for as many bytes as the op must move. On the CPU
two more figures say why an op stays below it: ``cached_ms``, what its arithmetic takes with all
data in the cache, and ``kernel_ms``, what the operating system takes to hand out and clear the
pages of the results. The copy has neither: it writes into memory that it has.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from blsgan.machine import processor
from blsgan.ops.cases import Joint, OpCase

SIZES = {"training": (12, 2, 256, 256), "large": (64, 2, 512, 512)}
VARIANTS = ("blsgan", "eager", "compile")
PHASES = ("forward", "backward", "full")
SLOW_S = 1.0
# Twice so many pixels fit the second-level caches of two cores; and a call that is overhead alone.
_CACHED, _TINY = (4, 256, 256), (1, 8, 8)


@dataclass(frozen=True)
class OpTiming:
    """One op, variant and phase at one size and dtype.

    Attributes:
        bytes_moved: what the op must move (``OpCase.traffic``).
        gb_per_s: that over the median time.
        roofline: that over ``copy_gb_per_s``. Above 1 where masks let the op skip memory, or where
            the data stay in a cache.
        copy_gb_per_s: bytes read plus bytes written by a copy that moves as many bytes.
        slower_than_blsgan: this variant's median over blsgan's.
        kernel_ms: processor time of a call inside the operating system, all threads together; of
            "blsgan" on the CPU, else None.
        cached_ms: the time of as many pixels of images that stay in the cache, without the fixed
            cost of a call; of "blsgan" on the CPU, else None.
        peak_mb: peak memory beyond the inputs; CUDA only, else None.
    """

    op: str
    variant: str
    phase: str
    size: str
    shape: str
    dtype: str
    device: str
    threads: int
    runs: int
    p20_ms: float
    p50_ms: float
    p80_ms: float
    bytes_moved: int
    gb_per_s: float
    copy_gb_per_s: float
    roofline: float
    slower_than_blsgan: float
    kernel_ms: float | None
    cached_ms: float | None
    peak_mb: float | None

    @classmethod
    def columns(cls) -> list[str]:
        """Names of the columns, in order."""
        return list(cls.__dataclass_fields__)

    def values(self) -> list[object]:
        """The columns' values, floats to four digits."""
        return [
            f"{value:.4g}" if isinstance(value, float) else value for value in asdict(self).values()
        ]


def machine(device: str) -> dict[str, str]:
    """What the figures were taken on."""
    facts = {
        "cpu": processor(),
        "cores": str(os.cpu_count()),
        "load_average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gb"] = f"{properties.total_memory / 2**30:.0f}"
        facts["cuda"] = str(torch.version.cuda)
    return facts


def _timer(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """What runs a function once and returns its milliseconds."""
    if device.type == "cuda":

        def on_gpu(function: Callable[[], object]) -> float:
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(device)
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize(device)
            return float(begin.elapsed_time(end))

        return on_gpu

    def on_cpu(function: Callable[[], object]) -> float:
        begin = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - begin)

    return on_cpu


def in_turns(
    functions: dict[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    *,
    warm_up: int = 1,
    least: int = 5,
    most: int = 200,
) -> dict[str, list[float]]:
    """Run all functions in turns for about ``seconds`` and return each one's milliseconds.

    Each measured call follows an unmeasured one of the same function, so that it finds the memory
    that a training loop would find. Without that, what ran in between decides: a virtual machine's
    host may take back large pages that have been free for two seconds, and the next touch of them
    costs 3 ms/MB instead of 0.15. Calls of more than ``SLOW_S`` are measured at once, and three
    turns of them do.
    """
    timer = _timer(device)
    last = dict.fromkeys(functions, 0.0)
    for _ in range(warm_up):
        for name, function in functions.items():
            last[name] = timer(function)
    times: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for turn in range(most):
        spent = time.perf_counter() - begin
        enough = 3 if max(last.values(), default=0.0) > 1e3 * SLOW_S else least
        if turn >= enough and spent > seconds:
            break
        for name, function in functions.items():
            if last[name] <= 1e3 * SLOW_S:
                function()
            last[name] = timer(function)
            times[name].append(last[name])
    return times


def quantile(values: list[float], q: float) -> float:
    """The value below which the fraction ``q`` of the sorted values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def _phase(
    call: Callable[..., Any], args: tuple[Tensor, ...], trained: tuple[int, ...], phase: str
) -> Callable[[], object]:
    """A function of no arguments that runs one phase as a user would."""
    leaves = tuple(arg.detach().requires_grad_(i in trained) for i, arg in enumerate(args))

    def forward() -> Any:
        with torch.no_grad():
            return call(*leaves)

    if phase == "forward" or not trained:
        return forward

    def differentiable(result: Any) -> list[Tensor]:
        parts = result if isinstance(result, tuple) else (result,)
        return [part for part in parts if part.requires_grad]

    probe = differentiable(call(*leaves))
    grads = [torch.rand_like(part) if part.dim() > 0 else None for part in probe]

    def clear() -> None:
        for leaf in leaves:
            leaf.grad = None

    def backward() -> None:
        clear()
        torch.autograd.backward(probe, grads, retain_graph=True)

    def full() -> None:
        clear()
        torch.autograd.backward(differentiable(call(*leaves)), grads)

    return backward if phase == "backward" else full


def copy_bandwidth(bytes_moved: int, device: torch.device, seconds: float) -> float:
    """GB/s (read plus written) of a copy that moves ``bytes_moved`` bytes."""
    count = max(bytes_moved // 8, 1)
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    times = in_turns({"copy": lambda: target.copy_(source)}, device, seconds, least=9)["copy"]
    return 8 * count / quantile(times, 0.5) / 1e6


def _kernel_ms(function: Callable[[], object], device: torch.device, calls: int) -> float | None:
    if device.type != "cpu":
        return None
    function()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    for _ in range(calls):
        function()
    return 1e3 * (resource.getrusage(resource.RUSAGE_SELF).ru_stime - before) / calls


def _cached_ms(case: OpCase, joint: Joint, phase: str) -> float | None:
    """See ``OpTiming.cached_ms``; the fastest of many runs, because this is a limit."""
    if torch.device(joint.device).type != "cpu":
        return None

    def fastest(size: tuple[int, int, int]) -> float:
        shape = (size[0], joint.shape[1], *size[1:])
        args = case.inputs(Joint(shape, dtype=joint.dtype))
        functions = {"": _phase(case.call, args, case.trained, phase)}
        return min(in_turns(functions, torch.device("cpu"), 0.2)[""])

    batch, _, height, width = joint.shape
    pixels = batch * height * width
    return (fastest(_CACHED) - fastest(_TINY)) * pixels / (_CACHED[0] * _CACHED[1] * _CACHED[2])


def _peak_mb(function: Callable[[], object], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before) / 2**20


def measure(
    case: OpCase,
    size: str,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    shape: tuple[int, int, int, int] | None = None,
    variants: tuple[str, ...] = VARIANTS,
    phases: tuple[str, ...] = PHASES,
    seconds: float = 2.0,
) -> Iterator[OpTiming]:
    """Time one op at one size and dtype; yields a row for each phase and variant.

    Args:
        case: the op.
        size: name of the size, a key of ``SIZES`` unless ``shape`` is given.
        dtype: of the image-sized tensors; masks are bool.
        device: "cpu" or a CUDA device.
        shape: (B, N, H, W) instead of the size's.
        variants: any of ``VARIANTS``; "blsgan" is always measured.
        phases: any of ``PHASES``; an op without gradients has "forward" and "full", which is the
            forward pass.
        seconds: for each phase, all variants together, beyond the warm-up; at least five runs of
            each (three where one takes longer than ``SLOW_S``).
    """
    where = torch.device(device)
    joint = Joint(shape or SIZES[size], dtype=dtype, device=where)
    args = case.inputs(joint)
    calls: dict[str, Callable[..., Any]] = {"blsgan": case.call}
    if "eager" in variants:
        calls["eager"] = case.call_reference
    if "compile" in variants:
        torch._dynamo.reset()
        calls["compile"] = torch.compile(case.call_reference, fullgraph=True, dynamic=False)
    forward_bytes, backward_bytes = case.bytes_moved(joint)
    volume = {
        "forward": forward_bytes,
        "backward": backward_bytes,
        "full": forward_bytes + backward_bytes,
    }
    for phase in phases:
        if phase == "backward" and not case.trained:
            continue
        functions = {name: _phase(call, args, case.trained, phase) for name, call in calls.items()}
        roof = copy_bandwidth(volume[phase], where, min(1.0, seconds / 4))
        times = in_turns(functions, where, seconds)
        base = quantile(times["blsgan"], 0.5)
        cached = _cached_ms(case, joint, phase)
        for name, values in times.items():
            median = quantile(values, 0.5)
            achieved = volume[phase] / median / 1e6
            yield OpTiming(
                op=case.name,
                variant=name,
                phase=phase,
                size=size,
                shape="x".join(str(edge) for edge in joint.shape),
                dtype=str(dtype).removeprefix("torch."),
                device=str(where),
                threads=torch.get_num_threads() if where.type == "cpu" else 0,
                runs=len(values),
                p20_ms=quantile(values, 0.2),
                p50_ms=median,
                p80_ms=quantile(values, 0.8),
                bytes_moved=volume[phase],
                gb_per_s=achieved,
                copy_gb_per_s=roof,
                roofline=achieved / roof,
                slower_than_blsgan=median / base,
                kernel_ms=_kernel_ms(functions[name], where, 5) if name == "blsgan" else None,
                cached_ms=cached if name == "blsgan" else None,
                peak_mb=_peak_mb(functions[name], where),
            )


def count_launches(function: Callable[[], object]) -> int:
    """Kernels and memory operations that ``function`` starts on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        function()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return sum(1 for event in recorded.events() if event.device_type == on_device)


def count_dispatches(function: Callable[[], object]) -> int:
    """Operators that ``function`` runs, on any device; views and allocations do not count.

    On a GPU each of PyTorch's own is at least one launch; one of ``blsgan``'s is as many as its
    launcher says (two where a reduction has a second stage).
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    counted = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal counted
            name = func.overloadpacket.__name__
            returns_view = any(ret.alias_info for ret in func._schema.returns)
            in_place = func._schema.is_mutable
            if (in_place or not returns_view) and not name.startswith(("empty", "new_empty")):
                counted += 1
            return func(*args, **(kwargs or {}))

    with Count():
        function()
    return counted
