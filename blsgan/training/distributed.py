"""One run on several devices: processes that ``torchrun`` starts, each with its rows of a batch.

Every process draws the whole batch from the same random numbers, sends its rows through the
networks and gathers what the others made of theirs; the losses then see the whole batch, as those
of a single process do, because root mean squares and Dice over parts do not average to those over
all. DistributedDataParallel sums the gradients, so the weights stay the same everywhere. Only the
first process writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blsgan.errors import UsageError

_PATIENCE = timedelta(hours=2)  # the first process registers visits and writes weights alone


@dataclass(frozen=True)
class World:
    """The processes of a run: ``size`` of them, this one is number ``rank``."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def rows(self, tensor: Tensor) -> Tensor:
        """This process's share of a batch's rows, padded by its last row to equal shares."""
        if self.size == 1:
            return tensor
        share = -(-len(tensor) // self.size)
        missing = share * self.size - len(tensor)
        if missing:
            tensor = torch.cat((tensor, tensor[-1:].expand(missing, *tensor.shape[1:])))
        return tensor[self.rank * share : (self.rank + 1) * share]

    def gather(self, rows: Tensor, count: int, *, summed: bool = True) -> Tensor:
        """The first ``count`` rows of all processes' shares, in order; gradients reach the own.

        Args:
            rows: this process's share.
            count: rows of the batch, without those that padded the shares.
            summed: whether gradients shall add up over the processes in the parameters below, of
                which DistributedDataParallel takes the mean. False where ``rows`` were computed
                from something gathered already, which sees to it: once is enough.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self, self.size if summed else 1)
        return gathered[:count]

    def wrap(self, network: nn.Module, *, unused: bool) -> nn.Module:
        """The network whose gradients all processes share; ``unused``: some may have none."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        return nn.parallel.DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=unused,
        )

    def all(self, flag: bool) -> bool:
        """Whether it is so in every process."""
        if self.size == 1:
            return flag
        flags: list[bool | None] = [None] * self.size
        dist.all_gather_object(flags, flag)
        return all(flags)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


class _Gather(torch.autograd.Function):
    """Every process's rows one after the other.

    All processes compute the same loss of the gathered rows, so each has the gradient of all rows
    and takes that of its own, ``factor`` times: as many as there are processes, for
    DistributedDataParallel's mean to be the sum.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World, factor: int) -> Tensor:
        ctx.world, ctx.count, ctx.factor = world, len(rows), factor
        parts = [
            torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world.size)
        ]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        start = ctx.world.rank * ctx.count
        return grads[0][start : start + ctx.count] * ctx.factor, None, None


@contextmanager
def world_of(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Joins the processes that torchrun started, on their devices; alone without torchrun.

    Args:
        device: as asked for; ``cuda`` becomes the GPU of the process's number on this machine.

    Raises:
        UsageError: a numbered GPU with several processes, or fewer GPUs than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(), device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if ":" in str(device):
            raise UsageError(
                f"device '{device}' is one GPU for {size} processes; use --device "
                "cuda, which gives each its own"
            )
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local} of this machine has no GPU: torch sees "
                f"{torch.cuda.device_count()}; start fewer with --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
