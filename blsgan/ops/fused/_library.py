"""Loads the compiled ops and holds what their Python sides share: checks, fakes' helpers, vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blsgan.errors import BackendError
from blsgan.ops import LAW_MAX, LAW_MIN

LIBRARY = Path(__file__).resolve().parents[2] / "_ops.so"
OLDEST_TORCH = (2, 11)
"""The first whose stable ABI has what the ops use."""

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MASK_DTYPES = (torch.bool, torch.uint8, *FLOAT_DTYPES)


def is_exporting() -> bool:
    """Whether a model is being exported: then plain PyTorch is traced, and not an op.

    Inside torch.compile torch 2.11 answers yes as well, but its flag does not.
    """
    return torch.compiler.is_exporting() and getattr(torch.compiler, "_is_exporting_flag", True)


def _load() -> None:
    if not LIBRARY.is_file():
        raise BackendError(
            f"the compiled ops are missing ({LIBRARY} does not exist): "
            "install blsgan with `pip install .` in an environment that has torch"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise BackendError(
            f"the compiled ops need torch {oldest} or newer, and this is {torch.__version__}: "
            f"pip install 'torch>={oldest}'"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise BackendError(
            f"the compiled ops in {LIBRARY} do not load under torch {torch.__version__} "
            f"({error}): rebuild blsgan with `pip install .`"
        ) from error


_load()


def build_info() -> dict[str, str]:
    """What the loaded op library was compiled for: keys ``cpu`` (dispatch level) and ``cuda``."""
    text: str = torch.ops.blsgan.build_info()
    return dict(part.split("=", 1) for part in text.split(" "))


def check_tensor(op: str, name: str, value: object, dtypes: Sequence[torch.dtype]) -> Tensor:
    """Return ``value`` if it is a strided tensor of one of ``dtypes``, else raise TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(
            f"{op}: {name} must be one of {names}, got {str(value.dtype).removeprefix('torch.')}"
        )
    if value.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {value.layout}")
    return value


def check_float(op: str, name: str, value: object) -> Tensor:
    """Return ``value`` if it is a dense floating-point tensor, else raise TypeError."""
    return check_tensor(op, name, value, FLOAT_DTYPES)


def check_masks(op: str, masks: object) -> tuple[int, int, int, int]:
    """Return (B, N, H, W) of the masks; TypeError or ValueError if they are none."""
    tensor = check_tensor(op, "masks", masks, MASK_DTYPES)
    if tensor.dim() != 4 or tensor.shape[1] < 2:
        raise ValueError(
            f"{op}: masks must have the shape [B,N,H,W] with N >= 2, got {list(tensor.shape)}"
        )
    batch, layers, height, width = tensor.shape
    return batch, layers, height, width


def check_shape(op: str, name: str, tensor: Tensor, shape: Sequence[int], letters: str) -> None:
    """Raise ValueError unless ``tensor`` has ``shape``; ``letters`` spells it for the message."""
    if tensor.dim() != len(shape) or any(a != b for a, b in zip(tensor.shape, shape, strict=True)):
        raise ValueError(
            f"{op}: {name} must have the shape {letters} = {list(shape)} "
            f"(from masks), got {list(tensor.shape)}"
        )


def check_soft_tissue(op: str, soft_tissue: object, batch: int, height: int, width: int) -> Tensor:
    """Return soft tissue if it is [B] or a map [B,1,H,W], else raise TypeError or ValueError."""
    tensor = check_float(op, "soft_tissue", soft_tissue)
    if tensor.dim() == 4:
        check_shape(op, "soft_tissue", tensor, (batch, 1, height, width), "[B,1,H,W]")
    else:
        check_shape(op, "soft_tissue", tensor, (batch,), "[B] or [B,1,H,W], [B]")
    return tensor


def check_law(op: str, law: float) -> float:
    """Return ``law`` if it is one, else raise ValueError."""
    if law == 0.0 or LAW_MIN <= law <= LAW_MAX:
        return float(law)
    raise ValueError(f"{op}: law must be 0 or between {LAW_MIN:g} and {LAW_MAX:g}, got {law}")


def check_device(op: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors lie on one device."""
    items = list(tensors.items())
    first_name, first = items[0]
    for name, tensor in items[1:]:
        if tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} but {first_name} is on {first.device}"
            )


def differentiable(
    name: str,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    vmap: Callable[..., Any],
) -> Callable[..., Any]:
    """Register the derivative and the vmap rule of ``blsgan::<name>``; return what calls the op.

    Autograd, torch.compile and plain vmap meet the op itself. ``torch.func``'s gradient transforms
    need an ``autograd.Function`` with a separate ``setup_context``, which the dispatcher's
    registration does not make, so under them the same formulas go through one.
    """
    op = getattr(torch.ops.blsgan, name).default
    torch.library.register_autograd(f"blsgan::{name}", backward, setup_context=setup_context)
    torch.library.register_vmap(f"blsgan::{name}", vmap)
    members = {
        "forward": staticmethod(lambda *args: op(*args)),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
    }
    transformed = type(f"Transformed_{name}", (torch.autograd.Function,), members)

    def call(*args: Any) -> Any:
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return transformed.apply(*args)  # type: ignore[attr-defined]
        return op(*args)

    return call


def first_order(name: str, vmap: Callable[..., Any]) -> Callable[..., Any]:
    """What calls ``blsgan::<name>_backward``; its own derivative is refused with a sentence.

    The dispatcher's default for an op without a derivative would warn and return wrong numbers.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept for a derivative that does not exist."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{name} has no second derivative: differentiate it only once")

    return differentiable(f"{name}_backward", setup_context, refuse, vmap)


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as what ``blsgan::<name>`` gives for tensors without data.

    Torch takes it as soon as any argument lies on the device "meta", and what it returns would then
    be memory nobody wrote. So tensors of several devices are refused here, as C++ refuses them.
    """

    def register(shapes: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(shapes)
        def checked(*args: Any, **kwargs: Any) -> Any:
            devices = {arg.device for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)}
            if len(devices) > 1:
                names = " and ".join(sorted(map(str, devices)))
                raise RuntimeError(f"blsgan::{name}: its tensors lie on {names}; move them to one")
            return shapes(*args, **kwargs)

        torch.library.register_fake(f"blsgan::{name}")(checked)
        return shapes

    return register


def fake_loss(*tensors: Tensor) -> Tensor:
    """A fake scalar loss with the dtype that a loss over ``tensors`` has."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return tensors[0].new_empty((), dtype=torch.float64 if wide else torch.float32)


def fold_batch(
    info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[list[Any], int]:
    """Fold a vmapped dimension of every tensor argument into its batch dimension.

    Arguments that are not mapped are repeated. Returns the arguments and the size of the mapped
    dimension; ``unfold_batch`` undoes it on the results.
    """
    size: int = info.batch_size
    folded = []
    for dim, arg in zip(in_dims, args, strict=True):
        if not isinstance(arg, Tensor):
            folded.append(arg)
            continue
        mapped = arg.movedim(dim, 0) if dim is not None else arg.expand(size, *arg.shape)
        folded.append(mapped.reshape(size * mapped.shape[1], *mapped.shape[2:]))
    return folded, size


def unfold_batch(result: Tensor, size: int) -> Tensor:
    """Give a folded result its mapped dimension back, in front."""
    return result.reshape(size, result.shape[0] // size, *result.shape[1:])


def each_of_batch(
    op: Any, info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[Any, Any]:
    """Vmap rule of ops that reduce over the batch: one call for each mapped index."""
    results = [
        op(
            *(
                arg.select(dim, index) if isinstance(arg, Tensor) and dim is not None else arg
                for dim, arg in zip(in_dims, args, strict=True)
            )
        )
        for index in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, tuple(0 for _ in stacked)
