"""Separate many joints in processes of this machine: reading, drawing and writing take most of it.

A process has a network of its own; what crosses between them are paths and sentences.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait

from blsgan.errors import BackendError
from blsgan.io.listing import Item
from blsgan.pipeline.separate import Work
from blsgan.pipeline.worklist import Attempt, attempt

JOINTS_WORTH_A_PROCESS = 12
"""A process is up in half a second, in which another one separates about as many joints."""
_CHUNK = 6


def processes_for(items: Sequence[Item], jobs: int) -> int:
    """How many of ``jobs`` processes these joints are worth."""
    return max(1, min(jobs, len(items) // JOINTS_WORTH_A_PROCESS))


def separate_all(items: Sequence[Item], work: Work, jobs: int) -> Iterator[Attempt]:
    """Separate ``items`` in ``jobs`` processes; yields what became of each, in order.

    The results have the same bytes whatever their number. Raises :class:`BackendError` where a
    process dies, such as for lack of memory; what is finished stays.
    """
    if jobs == 1:
        for item in items:
            yield attempt(work, item)
        return
    # Spawned: a fork of a process with an inference session in it may hang.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (work,)) as pool:
        try:
            chunks = [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]
            for attempts in pool.map(_some, chunks):
                yield from attempts
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
    for ending in (signal.SIGINT, signal.SIGTERM):  # the parent's to answer: no joint is cut short
        signal.signal(ending, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    # Read when the kernels are loaded, which is later: with every core's threads in each process
    # they would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", str(work.threads or 1))
    _work = work


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None, "spawned"
    wait([parent.sentinel])
    os._exit(1)


def _some(items: Sequence[Item]) -> list[Attempt]:
    work = _work
    assert work is not None, "begun with it"
    # Two at a time: while one waits for the disk to have its files, the other one is drawn.
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda item: attempt(work, item), items))
