"""What only a GPU can show; benchmarks/gpu_check.py runs this where there is one.

With the emulated kernels (`make emulate`) the same tests run on the CPU, those that need no stream
and no second processor, on tensors that they have time for.
"""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch", reason="the ops on a GPU are PyTorch's")

from blsgan.ops.cases import CASES, Joint  # noqa: E402

# "1": a GPU; "emulated": the emulated kernels. Either must then be there.
REQUIRED = os.environ.get("BLSGAN_REQUIRE_GPU")


def _why_not() -> str | None:
    if REQUIRED == "emulated":
        return None
    if not torch.cuda.is_available():
        return "no CUDA device can be used here"
    from blsgan.ops.fused._library import build_info

    if build_info()["cuda"] != "yes":
        return "blsgan was built without CUDA kernels (BLSGAN_CUDA=1 builds them)"
    return None


REASON = _why_not()
pytestmark = pytest.mark.gpu
if REASON and not REQUIRED:
    pytest.skip(REASON, allow_module_level=True)

EMULATED = REQUIRED == "emulated"
if EMULATED:
    from blsgan.ops.fused._library import build_info

    assert build_info()["cuda"] == "emulated"
DEVICE = "cpu" if EMULATED else "cuda"
needs_a_device = pytest.mark.skipif(EMULATED, reason="the emulator has no streams and no memory")

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LIMIT = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHAPES = (
    (2, 2, 37, 53),
    (1, 2, 1, 1),
    (2, 3, 33, 47),
    (3, 2, 64, 64),
    (1, 6, 20, 31),
    (2, 2, 513, 129),
)[: 3 if EMULATED else 6]
differentiable = [case for case in CASES if case.gradients]


def by_case(cases=CASES):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def tensors(result):
    return tuple(result) if isinstance(result, tuple) else (result,)


def oracle(args):
    return tuple(a.cpu().double() if a.is_floating_point() else a.cpu() for a in args)


def interior(args):
    return tuple(a.clamp(0.02, 0.98) if a.dim() == 4 and a.shape[1] == 1 else a for a in args)


def run_with_gradients(function, args, wanted, device):
    leaves = [a.detach().to(device).requires_grad_(i in wanted) for i, a in enumerate(args)]
    results = [part for part in tensors(function(*leaves)) if part.is_floating_point()]
    generator = torch.Generator().manual_seed(3)
    total = sum(
        (
            part.double()
            * torch.rand(part.shape, generator=generator, dtype=torch.float64).to(device)
        ).sum()
        for part in results
    )
    ((1024.0 if results[0].dim() == 0 else 1.0) * total).backward()
    return [leaves[i].grad for i in wanted]


@by_case()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(case, dtype, shape):
    for kind in ("joint", "random"):
        args = case.inputs(Joint(shape, dtype=dtype, device=DEVICE, masks_kind=kind))
        expected = tensors(case.call_reference(*oracle(args)))
        for got, want in zip(tensors(case.call(*args)), expected, strict=True):
            torch.testing.assert_close(
                got.cpu().double(), want.double(), rtol=LIMIT[dtype], atol=LIMIT[dtype]
            )


@by_case(differentiable)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(case, dtype, shape):
    args = interior(case.inputs(Joint(shape, dtype=dtype, masks_kind="random")))
    got = run_with_gradients(case.call, args, case.gradients, DEVICE)
    want = run_with_gradients(case.call_reference, oracle(args), case.gradients, "cpu")
    for g, w in zip(got, want, strict=True):
        size = max(w.abs().max().item(), 1e-30)
        torch.testing.assert_close(
            g.cpu().double() / size, w / size, rtol=8 * LIMIT[dtype], atol=8 * LIMIT[dtype]
        )


@by_case()
def test_layouts(case):
    args = case.inputs(Joint((2, 2, 24, 40), device=DEVICE))
    expected = tensors(case.call(*args))
    other = [a.contiguous(memory_format=torch.channels_last) if a.dim() == 4 else a for a in args]
    for got, want in zip(tensors(case.call(*other)), expected, strict=True):
        assert torch.equal(got, want)
    # Off the 16-byte grid.
    shifted = []
    for a in args:
        flat = torch.empty(a.numel() + 1, dtype=a.dtype, device=a.device)
        flat[1:] = a.flatten()
        shifted.append(flat[1:].view(a.shape))
    for got, want in zip(tensors(case.call(*shifted)), expected, strict=True):
        assert torch.equal(got, want)


@by_case()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_twice(case, dtype):
    shape = (2, 2, 60, 57) if EMULATED else (5, 2, 300, 257)
    args = case.inputs(Joint(shape, dtype=dtype, device=DEVICE))
    runs = []
    for _ in range(3):
        result = list(tensors(case.call(*args)))
        if case.gradients:
            result += run_with_gradients(case.call, args, case.gradients, DEVICE)
        runs.append(result)
    for other in runs[1:]:
        for got, want in zip(other, runs[0], strict=True):
            assert torch.equal(got, want)


@needs_a_device
@by_case()
def test_a_stream_of_ones_own(case):
    args = case.inputs(Joint((8, 2, 256, 256), device=DEVICE))
    expected = tensors(case.call(*args))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # Work that delays the stream: an op on another stream would read the old values.
        torch.cuda._sleep(50_000_000)
        fresh = [torch.empty_like(a).copy_(a) for a in args]
        got = tensors(case.call(*fresh))
    stream.synchronize()
    for g, w in zip(got, expected, strict=True):
        assert torch.equal(g, w)


@needs_a_device
@by_case()
def test_another_device_than_the_current_one(case):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one CUDA device")
    first = case.inputs(Joint((2, 2, 64, 64), device="cuda:0"))
    second = case.inputs(Joint((2, 2, 64, 64), device="cuda:1"))
    with torch.cuda.device(0):
        got = tensors(case.call(*second))
    for g, w in zip(got, tensors(case.call(*first)), strict=True):
        assert g.device == torch.device("cuda:1")
        assert torch.equal(g.cpu(), w.cpu())
    with pytest.raises(ValueError, match="is on cuda:"):
        case.call(second[0], *first[1:])


@needs_a_device
@by_case()
def test_cuda_graph_capture(case):
    args = [a.clone() for a in case.inputs(Joint((4, 2, 128, 128), device=DEVICE))]
    args = [a.requires_grad_(i in case.gradients) for i, a in enumerate(args)]

    def step():
        result = case.call(*args)
        if not case.gradients:
            return tensors(result)
        total = sum(part.float().sum() for part in tensors(result) if part.is_floating_point())
        wanted = [args[i] for i in case.gradients]
        return (*tensors(result), *torch.autograd.grad(total, wanted))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    other = case.inputs(Joint((4, 2, 128, 128), device=DEVICE, seed=9))
    with torch.no_grad():
        for a, o in zip(args, other, strict=True):
            a.copy_(o)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, step(), strict=True):
        assert torch.equal(got, want)


@needs_a_device
def test_the_generators_objective_takes_a_handful_of_launches():
    from blsgan import ops
    from blsgan.ops import reference
    from blsgan.ops.benchmark import count_launches

    joint = Joint((12, 2, 256, 256), device=DEVICE)
    layers, logits = joint.layers.requires_grad_(), joint.supervisor_logits.requires_grad_()
    k, masks, image, truth = joint.soft_tissue, joint.masks, joint.image, joint.true_layers

    def count(module):
        return count_launches(
            lambda: (
                module.supervisor_loss(logits, masks),
                module.reconstruction_loss(layers, masks, k, image),
                module.layer_loss(layers, truth, masks),
            )
        )

    assert count(ops) <= 6  # two stages for each of three losses
    assert count(reference) > 5 * count(ops)


@needs_a_device
def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 * 2**30:
        pytest.skip(f"needs 24 GB of free device memory, {free / 2**30:.0f} GB are free")
    batch, height, width = 66, 4096, 4096
    layers = torch.zeros(batch, 2, height, width, dtype=torch.bfloat16, device=DEVICE)
    assert layers.numel() > 2**31
    masks = torch.zeros(batch, 2, height, width, dtype=torch.bool, device=DEVICE)
    masks[-1, -1, -1, -9:] = True
    truth = torch.full((1, 2, height, width), 0.25, dtype=torch.bfloat16, device=DEVICE)
    layers.requires_grad_()
    from blsgan import ops

    loss = ops.layer_loss(layers, truth.expand(batch, -1, -1, -1), masks)
    loss.backward()
    assert loss.item() == 0.25
    expected = -1 / 9
    assert layers.grad[-1, -1, -1, -1].item() == pytest.approx(expected, rel=1e-2)
    assert layers.grad.count_nonzero().item() == 9


@needs_a_device
def test_a_failed_launch_names_the_op():
    from blsgan import ops

    joint = Joint((1, 2, 8, 8), device=DEVICE)
    with pytest.raises((ValueError, RuntimeError), match="compose_layers"):
        ops.compose_layers(joint.layers, joint.masks.cpu(), joint.soft_tissue)


@needs_a_device
def test_training_pairs_are_the_same_on_the_gpu(dataset):
    """The host's random numbers, so the same pairs; made without the host waiting."""
    from blsgan.data.dataset import load_root
    from blsgan.training.config import DataConfig
    from blsgan.training.pairs import RealOverlaps, SyntheticPairs

    images, data = load_root(dataset), DataConfig(rim_taper=0.5)
    for kind in (SyntheticPairs, RealOverlaps):
        here = kind(images).draw(6, torch.Generator().manual_seed(1), data)
        pairs = kind(images, torch.device("cuda"))
        pairs.draw(6, torch.Generator().manual_seed(0), data)  # what waits only once is over
        torch.cuda.set_sync_debug_mode("error")
        try:
            there = pairs.draw(6, torch.Generator().manual_seed(1), data)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for name, value in vars(here).items():
            found = getattr(there, name).cpu()
            if name in ("masks", "valid"):  # a border pixel may round to the other side
                assert (found != value).float().mean() < 1e-3, name
            else:
                close = torch.isclose(found, value, atol=1e-4, equal_nan=True)
                assert close.float().mean() > 0.999, name
