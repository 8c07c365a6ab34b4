"""What holds for every op: the table in blsgan.ops.cases, tested once."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="the ops are PyTorch's")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from blsgan import ops  # noqa: E402
from blsgan.ops.cases import CASES, Joint  # noqa: E402

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Half precision: inputs and results are rounded to the dtype, everything between is float32.
FORWARD = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    torch.float16: {"rtol": 1e-3, "atol": 1e-3},
    torch.bfloat16: {"rtol": 8e-3, "atol": 8e-3},
}
SHAPE = (2, 2, 37, 53)
differentiable = [case for case in CASES if case.gradients]


def by_case(cases=CASES):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def tensors(result):
    return tuple(result) if isinstance(result, tuple) else (result,)


def floating(result):
    """The results that have gradients: masks are decisions."""
    return tuple(part for part in tensors(result) if part.is_floating_point())


def as_oracle(args):
    """The same numbers in float64."""
    return tuple(arg.double() if arg.is_floating_point() else arg for arg in args)


def assert_close(result, expected, dtype, scale=1.0):
    for got, want in zip(tensors(result), tensors(expected), strict=True):
        limits = {key: value * scale for key, value in FORWARD[dtype].items()}
        torch.testing.assert_close(got.double(), want.double(), equal_nan=True, **limits)


def gradients(function, args, wanted, seed=11):
    """d <results, fixed random weights> / d args[wanted].

    A scalar loss is scaled up, as a loss scaler does: a mean over many pixels has gradients that
    float16 cannot hold.
    """
    leaves = [arg.detach().clone().requires_grad_(i in wanted) for i, arg in enumerate(args)]
    results = floating(function(*leaves))
    generator = torch.Generator().manual_seed(seed)
    total = sum(
        (
            result.double()
            * torch.rand(result.shape, generator=generator, dtype=torch.float64).to(result.device)
        ).sum()
        for result in results
    )
    (1024 * total if results[0].dim() == 0 else total).backward()
    return [leaves[i].grad for i in wanted]


def assert_gradients_close(case, args, dtype):
    # The oracle differentiates the rounded inputs: the op's error is its own.
    got = gradients(case.call, args, case.gradients)
    want = gradients(case.call_reference, as_oracle(args), case.gradients)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        size = max(w.abs().max().item(), 1e-30) if w.numel() else 1.0
        assert torch.isfinite(g).all()
        assert_close(g.double() / size, w / size, dtype, scale=8.0 if dtype.itemsize > 2 else 2.0)


@by_case()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layers", [2, 3, 5])
def test_values_equal_the_reference_in_float64(case, dtype, layers):
    for kind in ("joint", "random"):
        args = case.inputs(Joint((2, layers, 37, 53), dtype=dtype, masks_kind=kind))
        assert_close(case.call(*args), case.call_reference(*as_oracle(args)), dtype)


@by_case(differentiable)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layers", [2, 4])
def test_gradients_equal_the_reference_in_float64(case, dtype, layers):
    for kind in ("joint", "random"):
        joint = Joint((2, layers, 33, 31), dtype=dtype, masks_kind=kind)
        assert_gradients_close(case, interior(case.inputs(joint)), dtype)


def interior(args):
    """Images away from exactly 0 and 1, where a clamp's derivative is a matter of rounding."""
    if any(arg.dim() == 4 and arg.shape[1] == 1 for arg in args):
        return tuple(
            arg.clamp(0.02, 0.98) if arg.dim() == 4 and arg.shape[1] == 1 else arg for arg in args
        )
    return args


@by_case(differentiable)
def test_gradcheck(case):
    args = interior(case.inputs(Joint((2, 2, 3, 4), torch.float64, masks_kind="random")))
    args = [arg.requires_grad_(i in case.gradients) for i, arg in enumerate(args)]
    assert torch.autograd.gradcheck(lambda *args: floating(case.call(*args)), args)


@by_case()
def test_opcheck(case):
    joint = Joint((2, 2, 9, 7), masks_kind="random")
    args = list(case.inputs(joint))
    if case.op == "supervisor_loss":
        targets = ("masks", "zeros", "exclusive")
        args += [
            targets.index(case.options.get("target_layers", "masks")),
            case.options.get("terms", "hybrid") == "hybrid",
        ]
    args += [case.options["law"]] if "law" in case.options else []
    args = [
        arg.requires_grad_(i in case.gradients) if isinstance(arg, torch.Tensor) else arg
        for i, arg in enumerate(args)
    ]
    case.call(*case.inputs(joint))  # registers everything
    torch.library.opcheck(getattr(torch.ops.blsgan, case.op).default, tuple(args))


@by_case()
@pytest.mark.parametrize(
    "shape",
    [
        (0, 2, 8, 8),
        (2, 2, 0, 8),
        (2, 2, 8, 0),
        (1, 2, 1, 1),
        (3, 2, 1, 97),
        (2, 3, 97, 1),
        (1, 2, 65, 129),
        (2, 2, 64, 64),
    ],
    ids=str,
)
def test_any_shape(case, shape):
    args = case.inputs(Joint(shape))
    assert_close(case.call(*args), case.call_reference(*as_oracle(args)), torch.float32)
    if case.gradients:
        got = gradients(case.call, args, case.gradients)
        assert all(g.shape == args[i].shape for g, i in zip(got, case.gradients, strict=True))


@by_case()
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, *DTYPES], ids=str)
def test_mask_dtypes_and_values(case, mask_dtype):
    joint = Joint(SHAPE, mask_dtype=mask_dtype)
    args = list(case.inputs(joint))
    position = next(
        i for i, a in enumerate(args) if torch.equal(a, joint.masks) or torch.equal(a, joint.apart)
    )
    as_bool = [*args[:position], args[position] != 0, *args[position + 1 :]]
    expected = case.call_reference(*as_oracle(as_bool))
    if mask_dtype != torch.bool:
        args[position] = args[position] * 7  # not zero = covered, whatever the value
    assert_close(tensors(case.call(*args))[0], tensors(expected)[0], torch.float32)


def recorded(function):
    """The registered ops that a function calls, each with its arguments."""
    calls = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append((func, args))
            return func(*args, **(kwargs or {}))

    with Record():
        function()
    return calls


@by_case(differentiable)
@pytest.mark.parametrize("layers", [2, 3])
def test_the_registered_backward_op_takes_any_mask_that_is_not_zero(case, layers):
    args = case.inputs(Joint((2, layers, 37, 53), mask_dtype=torch.uint8))
    calls = recorded(lambda: gradients(case.call, args, case.gradients))
    op = getattr(torch.ops.blsgan, f"{case.op}_backward").default
    inputs = next(inputs for func, inputs in calls if func is op)
    position = next(i for i, arg in enumerate(inputs) if arg.dtype == torch.uint8)
    masks = inputs[position]
    assert masks.max() == 1
    assert (masks.sum(1) > 1).any()
    expected = tensors(op(*inputs))
    # Bits that no two bones share: a bitwise "and" of them is not an overlap.
    bits = 2 ** torch.arange(1, layers + 1, dtype=torch.uint8).view(1, layers, 1, 1)
    for values in (torch.full_like(bits, 255), bits):
        got = op(*inputs[:position], masks * values, *inputs[position + 1 :])
        for g, w in zip(tensors(got), expected, strict=True):
            assert torch.equal(g, w)


def layouts(tensor):
    """The same values in other memory layouts."""
    yield "channels_last", tensor.contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(*tensor.shape[:2], tensor.shape[2] + 3, tensor.shape[3] + 5).to(tensor.dtype)
    wide[:, :, 2:-1, 1:-4] = tensor
    yield "cropped", wide[:, :, 2:-1, 1:-4]
    yield "transposed", tensor.transpose(2, 3).contiguous().transpose(2, 3)
    yield "every second batch", torch.stack([tensor, tensor], 1).flatten(0, 1)[::2]


@by_case()
def test_layouts_give_the_same_bits(case):
    joint = Joint((2, 2, 19, 23))
    args = case.inputs(joint)
    expected = tensors(case.call(*args))
    for i, arg in enumerate(args):
        if arg.dim() != 4:
            continue
        for name, other in layouts(arg):
            changed = tensors(case.call(*args[:i], other, *args[i + 1 :]))
            for got, want in zip(changed, expected, strict=True):
                assert torch.equal(got, want), f"argument {i} as {name}"
    if case.gradients:
        want = gradients(case.call, args, case.gradients)
        channels_last = torch.channels_last
        last = [a.contiguous(memory_format=channels_last) if a.dim() == 4 else a for a in args]
        for g, w in zip(gradients(case.call, last, case.gradients), want, strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=0)


@by_case()
def test_an_expanded_batch_is_read_in_place(case):
    args = case.inputs(Joint((1, 2, 19, 23)))
    many = [arg.expand(3, *arg.shape[1:]) for arg in args]
    expected = tensors(case.call(*(arg.contiguous() for arg in many)))
    for got, want in zip(tensors(case.call(*many)), expected, strict=True):
        assert torch.equal(got, want)


@by_case()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_twice_and_on_any_number_of_threads(case, dtype):
    args = case.inputs(Joint((3, 2, 130, 257), dtype=dtype))
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            result = list(tensors(case.call(*args)))
            if case.gradients:
                result += gradients(case.call, args, case.gradients)
            runs.append(result)
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        for got, want in zip(other, runs[0], strict=True):
            assert torch.equal(got, want)


@by_case()
@pytest.mark.parametrize("kind", ["none", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_mask_and_masks_everywhere(case, kind, dtype):
    args = case.inputs(Joint(SHAPE, dtype=dtype, masks_kind=kind))
    result = case.call(*args)
    assert_close(result, case.call_reference(*as_oracle(args)), dtype)
    if case.gradients:
        assert_gradients_close(case, interior(args), dtype)


def soft_tissue_of(case):
    """The position of its soft tissue."""
    return {"compose_layers": 2, "split_attenuation": 3, "reconstruction_loss": 2}[case.op]


soft = [
    case
    for case in CASES
    if case.op in ("compose_layers", "split_attenuation", "reconstruction_loss")
]


@by_case(soft)
@pytest.mark.parametrize("k", [0.0, 0.95])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_tissue_at_its_limits(case, k, dtype):
    args = interior(case.inputs(Joint(SHAPE, dtype=dtype, soft_tissue_value=k)))
    # A composition divides by (1 - k): its rounding error grows with it.
    assert_close(case.call(*args), case.call_reference(*as_oracle(args)), dtype, scale=20.0)
    assert all(torch.isfinite(g).all() for g in gradients(case.call, args, case.gradients))


@by_case(soft)
@pytest.mark.parametrize("k", [-0.5, 0.99, 1.0, 7.0])
def test_soft_tissue_beyond_its_limits_is_clamped_with_zero_gradient(case, k):
    outside = case.inputs(Joint(SHAPE, soft_tissue_value=k))
    limit = case.inputs(Joint(SHAPE, soft_tissue_value=0.0 if k < 0 else 0.95))
    assert torch.equal(case.call(*outside), case.call(*limit))
    position = soft_tissue_of(case)
    grad = gradients(case.call, outside, case.gradients)[case.gradients.index(position)]
    assert torch.equal(grad, torch.zeros_like(grad))


masked = [
    case
    for case in CASES
    if case.op in ("compose_layers", "reconstruction_loss", "layer_loss", "split_attenuation")
]


@by_case(masked)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_what_lies_off_the_masks_does_not_count(case, value):
    joint = Joint(SHAPE)
    covered = joint.masks
    args = list(case.inputs(joint))
    expected = case.call(*args)
    clean = gradients(case.call, args, case.gradients)
    for i, arg in enumerate(args):
        if not arg.is_floating_point() or arg.dim() != 4:
            continue
        used = covered if arg.shape[1] == covered.shape[1] else covered.any(1, keepdim=True)
        # Logits and a map of soft tissue matter in the overlap only.
        if (case.op == "split_attenuation" and i == 0) or (
            case in soft and i == soft_tissue_of(case)
        ):
            used = used & (covered.sum(1, keepdim=True) > 1)
        args[i] = torch.where(used, arg, value)
    assert torch.equal(case.call(*args), expected)
    for g, w in zip(gradients(case.call, args, case.gradients), clean, strict=True):
        assert torch.equal(g, w)


@by_case()
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_nan_inside_shows_and_nothing_crashes(case, value):
    args = list(case.inputs(Joint(SHAPE, masks_kind="all")))
    floats = [i for i, arg in enumerate(args) if arg.is_floating_point()]
    for i in floats:
        broken = args[i].clone()
        # The middle of the first image, or the first image's own value.
        middle = (0, 0, SHAPE[2] // 2, SHAPE[3] // 2) if broken.dim() == 4 else (0,)
        broken[middle] = value
        result = tensors(case.call(*args[:i], broken, *args[i + 1 :]))
        shift = case.op == "synthesize_overlap" and i >= 3
        if value != value and not shift:  # a shift that is no number leaves the layer empty
            assert any(torch.isnan(r).any() for r in result if r.is_floating_point())
    if case.gradients and value != value:
        args[floats[0]].view(-1)[0] = value
        assert any(torch.isnan(g).any() for g in gradients(case.call, args, case.gradients))


@by_case()
def test_compile_fullgraph(case):
    torch._dynamo.reset()
    joint = Joint((2, 2, 17, 19))
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    args = case.inputs(joint)
    for got, want in zip(tensors(compiled(*args)), tensors(case.call(*args)), strict=True):
        assert torch.equal(got, want)
    if case.gradients:
        want = gradients(case.call, args, case.gradients)
        for g, w in zip(gradients(compiled, args, case.gradients), want, strict=True):
            assert torch.equal(g, w)


def test_the_first_use_may_be_inside_a_compiled_function():
    code = """
import torch
from blsgan import ops
@torch.compile(fullgraph=True, backend="eager")
def loss(layers, masks):
    return ops.layer_loss(layers, layers * 0, masks)
assert loss(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4)).item() == 1.0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@by_case()
def test_export_traces_plain_pytorch(case):
    class Module(torch.nn.Module):
        def forward(self, *args):
            return case.call(*args)

    args = case.inputs(Joint((2, 2, 17, 19)))
    program = torch.export.export(Module(), args)
    assert not [n for n in program.graph.nodes if "blsgan" in str(n.target)]
    assert_close(program.module()(*args), case.call(*args), torch.float32)


@by_case()
def test_vmap(case):
    several = [case.inputs(Joint((2, 2, 9, 11), seed=seed)) for seed in range(3)]
    stacked = [torch.stack(parts) for parts in zip(*several, strict=True)]
    mapped = tensors(torch.func.vmap(case.call)(*stacked))
    for index, args in enumerate(several):
        for got, want in zip(mapped, tensors(case.call(*args)), strict=True):
            torch.testing.assert_close(got[index], want, rtol=1e-6, atol=1e-6)
    # An argument that is not mapped.
    first = tensors(
        torch.func.vmap(case.call, in_dims=(0, *[None] * (len(stacked) - 1)))(
            stacked[0], *several[0][1:]
        )
    )
    torch.testing.assert_close(first[0][0], tensors(case.call(*several[0]))[0])


@by_case(differentiable)
def test_func_grad_and_vmap_of_it(case):
    args = case.inputs(Joint((2, 2, 9, 11)))

    def total(first, *rest):
        return sum(part.double().sum() for part in floating(case.call(first, *rest)))

    grad = torch.func.grad(total)(*args)
    leaf = args[0].clone().requires_grad_()
    total(leaf, *args[1:]).backward()
    torch.testing.assert_close(grad, leaf.grad, rtol=0, atol=0)
    mapped = torch.func.vmap(torch.func.grad(total), in_dims=(0, *[None] * (len(args) - 1)))(
        torch.stack([args[0], args[0].flip(0)]), *args[1:]
    )
    torch.testing.assert_close(mapped[0], grad, rtol=1e-6, atol=1e-8)


@by_case(differentiable)
def test_a_second_derivative_is_refused(case):
    args = [a.requires_grad_(i in case.gradients) for i, a in enumerate(case.inputs(Joint(SHAPE)))]
    result = sum(part.double().square().sum() for part in floating(case.call(*args)))
    first = torch.autograd.grad(result, args[case.gradients[0]], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@by_case()
def test_autocast_casts_nothing(case):
    args = case.inputs(Joint(SHAPE))
    with torch.autocast("cpu", torch.bfloat16):
        inside = tensors(case.call(*args))
    for got, want in zip(inside, tensors(case.call(*args)), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@by_case()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_may_differ_between_arguments(case, dtype):
    args = list(case.inputs(Joint(SHAPE)))
    floats = [i for i, arg in enumerate(args) if arg.is_floating_point()]
    for i in floats:
        mixed = [*args[:i], args[i].to(dtype), *args[i + 1 :]]
        result = case.call(*mixed)
        worst = dtype if dtype.itemsize == 2 else torch.float32
        assert_close(result, case.call_reference(*as_oracle(mixed)), worst)


@by_case()
def test_arguments_of_the_wrong_kind(case):
    args = case.inputs(Joint(SHAPE))
    for i, arg in enumerate(args):

        def with_other(other, i=i):
            return case.call(*args[:i], other, *args[i + 1 :])

        with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got list"):
            with_other(arg.tolist())
        with pytest.raises(TypeError, match=r"must be one of .*got int32"):
            with_other(arg.int())
        with pytest.raises(TypeError, match="got complex64"):
            with_other(arg.to(torch.complex64))
        with pytest.raises(TypeError, match="dense"):
            with_other(arg.to_sparse())
        with pytest.raises(ValueError, match="must have the shape"):
            with_other(arg[:1])
        with pytest.raises(ValueError, match="must have the shape"):
            with_other(arg.unsqueeze(-1))
        with pytest.raises(ValueError, match=r"is on meta|is on cpu"):
            with_other(arg.to("meta"))


@by_case()
def test_the_registered_op_is_memory_safe_when_called_directly(case):
    args = list(case.inputs(Joint(SHAPE)))
    case.call(*args)
    if case.op == "supervisor_loss":
        args += [0, True]
    op = getattr(torch.ops.blsgan, case.op)
    for i, arg in enumerate(args):
        if not isinstance(arg, torch.Tensor):
            continue
        for other in (arg[..., :-1].contiguous(), arg[:1], arg.unsqueeze(0)):
            with pytest.raises(RuntimeError, match="blsgan::"):
                op(*args[:i], other, *args[i + 1 :])


@by_case()
def test_the_registered_ops_refuse_tensors_of_several_devices(case):
    """Torch asks the fake, not the kernel, as soon as one of them is on "meta"."""
    inputs = case.inputs(Joint((1, 2, 9, 7)))
    calls = recorded(
        lambda: (
            gradients(case.call, inputs, case.gradients) if case.gradients else case.call(*inputs)
        )
    )
    ours = [(op, args) for op, args in calls if op.namespace == "blsgan"]
    assert {op._opname for op, _ in ours} >= {case.op}
    for op, args in ours:
        places = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
        assert len(places) > 1
        for i in places:
            with pytest.raises(RuntimeError, match=f"blsgan::{op._opname}: .* on cpu and meta"):
                op(*args[:i], args[i].to("meta"), *args[i + 1 :])


@by_case()
def test_cases_can_be_copied_and_have_a_docstring(case):
    assert copy.copy(case) == case
    text = getattr(ops, case.op).__doc__
    for word in ("Args:", "Returns:", "Raises:", "[B,"):
        assert word in text
