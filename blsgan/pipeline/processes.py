"""Separate many joints in processes of this machine: reading, drawing and writing take 9/10 of it.

A process has a separator of its own with one thread, so the results are the same whatever their
number; what crosses between them are paths and sentences.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from blsgan.errors import BackendError
from blsgan.io.listing import Item
from blsgan.pipeline.joint import Joint
from blsgan.pipeline.separate import separate_item
from blsgan.pipeline.worklist import Attempt, Outcome, attempt
from blsgan.records.separation import SeparationOptions, SeparationRecord
from blsgan.runtimes.session import ENGINES
from blsgan.tasks.segmentation import Segmenter
from blsgan.tasks.separation import Separator

JOINTS_WORTH_A_PROCESS = 8
"""A process is up in a second, in which another one separates about as many joints."""


@dataclass(frozen=True)
class Work:
    """How a list of joints is separated; what it loads, it loads once in each process.

    Attributes:
        output: folder of the results.
        options, overwrite: see :func:`blsgan.pipeline.separate.separate_item`.
        weights, segmenter: names or files of weights; None: those that ship.
        backend, threads: of both networks.
        require_masks: missing masks are an error instead of being predicted.
    """

    output: Path
    options: SeparationOptions
    overwrite: bool = False
    weights: str | None = None
    backend: str = "auto"
    segmenter: str | None = None
    require_masks: bool = False
    threads: int | None = None

    @functools.cached_property
    def separator(self) -> Separator:
        """The network; raises what :meth:`blsgan.Separator.from_pretrained` raises."""
        return Separator.from_pretrained(
            self.weights, self.backend, threads=self.threads, mirrored=self.options.mirrored
        )

    @functools.cached_property
    def _segmenter(self) -> Segmenter:
        backend = "auto" if self.backend in ENGINES else self.backend
        return Segmenter.from_pretrained(self.segmenter, backend, threads=self.threads)

    def __call__(self, item: Item) -> Outcome[Joint, SeparationRecord]:
        return separate_item(
            self.separator,
            item,
            self.output,
            self.options,
            overwrite=self.overwrite,
            segmenter=None if self.require_masks else lambda: self._segmenter,
        )


def processes_for(items: Sequence[Item], jobs: int) -> int:
    """How many of ``jobs`` processes these joints are worth."""
    return max(1, min(jobs, len(items) // JOINTS_WORTH_A_PROCESS))


def separate_all(items: Sequence[Item], work: Work, jobs: int) -> Iterator[Attempt]:
    """Separate ``items`` in at most ``jobs`` processes; yields what became of each, in order.

    Raises :class:`BackendError` where a process dies, such as for lack of memory; what is finished
    stays.
    """
    count = processes_for(items, jobs)
    if count == 1:
        for item in items:
            yield attempt(work, item)
        return
    # Spawned: a fork of a process with an inference session in it may hang.
    with ProcessPoolExecutor(count, get_context("spawn"), _begin, (work,)) as pool:
        try:
            yield from pool.map(_one, items)
        except BrokenProcessPool as error:
            raise BackendError(
                "a process that separated joints died, perhaps for lack of memory; what is "
                "finished stays: start again with fewer --jobs."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_work: Work | None = None


def _begin(work: Work) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    _work = work


def _one(item: Item) -> Attempt:
    assert _work is not None, "begun with it"
    return attempt(_work, item)
