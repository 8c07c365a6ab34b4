"""Batch separation on Ray Data, for archives beyond one machine.

A worker is a process of its own with a separator of its own; what crosses between them are paths
and sentences, never pictures, so every machine must see the files under the same paths. A worker
that dies is started again and its joints are tried again. Results appear whole, under their final
names, and a finished one is recognised by its content: so nothing is lost, and nothing is done
twice.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import BackendError, UsageError
from blsgan.io.listing import Item
from blsgan.pipeline.separate import Work
from blsgan.pipeline.worklist import Attempt, attempt
from blsgan.records.separation import SeparationOptions
from blsgan.tasks.separation import Separator

JOINTS_PER_TASK = 8
"""What a worker takes at once, and tries again when it was killed."""

_OBJECT_STORE_BYTES = 128 * 2**20
"""For a Ray that is started here: it holds paths only."""

Columns = dict[str, NDArray[Any]]


class SeparateJoints:
    """``map_batches`` class: rows with ``image``, ``upper``, ``lower``, ``folder``, ``name`` in.

    ``upper`` and ``lower`` are the mask files, or empty where they shall be predicted; the results
    are ``OUTPUT/folder/name_*``. The rows that come back have ``image``, ``failure`` (a sentence,
    or empty), ``skipped`` (an up to date result was there), ``notes`` (a JSON list) and ``became``
    (the panel of a DICOM file, or empty). All of them are text but ``skipped``, a bool.

    >>> dataset = ray.data.from_items(rows).map_batches(
    ...     SeparateJoints, fn_constructor_args=["results"], batch_size=8,
    ...     compute=ray.data.ActorPoolStrategy(size=4),
    ... )  # doctest: +SKIP
    """

    def __init__(
        self,
        output: os.PathLike[str] | str,
        options: SeparationOptions | None = None,
        *,
        overwrite: bool = False,
        weights: str | None = None,
        backend: str = "auto",
        device: str | None = None,
        segmenter: str | None = None,
        require_masks: bool = False,
        threads: int = 1,
    ) -> None:
        self._work = Work(
            Path(output),
            options or SeparationOptions(),
            overwrite=overwrite,
            weights=weights,
            backend=backend,
            device=device,
            segmenter=segmenter,
            require_masks=require_masks,
            threads=threads,
        )
        _ = self._work.separator  # wrong weights are an error of the worker, not of each joint

    def __call__(self, batch: Columns) -> Columns:
        attempts = [
            attempt(self._work, _item({name: str(values[row]) for name, values in batch.items()}))
            for row in range(len(batch["image"]))
        ]
        return {
            "image": np.array([attempt.image for attempt in attempts]),
            "failure": np.array([attempt.failure or "" for attempt in attempts]),
            "skipped": np.array([attempt.skipped for attempt in attempts]),
            "notes": np.array([json.dumps(attempt.notes) for attempt in attempts]),
            "became": np.array([attempt.became or "" for attempt in attempts]),
        }


def separate_on_ray(
    items: Sequence[Item],
    output: Path,
    options: SeparationOptions,
    *,
    overwrite: bool = False,
    weights: str | None = None,
    backend: str = "auto",
    device: str | None = None,
    segmenter: str | None = None,
    require_masks: bool = False,
    threads: int = 1,
    workers: int | None = None,
) -> Iterator[Attempt]:
    """Separate ``items`` on Ray and yield what became of each, in any order.

    Uses the cluster that Ray is connected to, else that of ``$RAY_ADDRESS``, else starts one on
    this machine and stops it at the end. Raises :class:`BackendError` when Ray is not installed,
    :class:`UsageError` for more threads than any machine of the cluster has, and what
    :meth:`Separator.from_pretrained` raises, before any work is given out; :class:`BackendError`
    also when Ray gives up in between.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendError(
            "--ray needs Ray Data, which is not installed; pip install 'blsgan[ray]'."
        ) from error
    Separator.from_pretrained(
        weights, backend, threads=threads, device=device
    )  # wrong weights are one error
    started = not ray.is_initialized()
    if started:
        _connect(ray)
    try:
        cores = max(
            (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0
        )
        if threads > cores:
            raise UsageError(
                f"--threads is {threads}, and no machine of the Ray cluster has more than "
                f"{cores:g} cores; give fewer."
            )
        if workers is None:
            workers = max(1, int(ray.cluster_resources().get("CPU", 1) // threads))
        tasks = max(1, -(-len(items) // JOINTS_PER_TASK))
        workers = min(workers, tasks)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours counts joints
        context.enable_operator_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # plans and advice
        rows = [_row(item) for item in items]
        dataset = ray.data.from_items(rows, override_num_blocks=tasks)
        attempts = dataset.map_batches(
            SeparateJoints,
            fn_constructor_args=[output.absolute(), options],
            fn_constructor_kwargs={
                "overwrite": overwrite,
                "weights": _anywhere(weights),
                "backend": backend,
                "device": device,
                "segmenter": _anywhere(segmenter),
                "require_masks": require_masks,
                "threads": threads,
            },
            batch_size=JOINTS_PER_TASK,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=threads,
        )
        for row in attempts.iter_rows():
            yield Attempt(
                row["image"],
                failure=row["failure"] or None,
                skipped=bool(row["skipped"]),
                notes=tuple(json.loads(row["notes"])),
                became=row["became"] or None,
            )
    except ray.exceptions.RayError as error:
        # It may pass for the error that a worker raised, with that worker's traceback as its text.
        reason = " ".join(str(getattr(error, "cause", None) or error).split())[:200]
        raise BackendError(
            f"Ray ended the run ({reason}); what is finished stays: start it again."
        ) from error
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**quiet)
        except ConnectionError as error:
            raise BackendError(
                f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}; start one "
                "with `ray start --head`, or unset the variable to use this machine."
            ) from error
        return
    try:
        ray.init(
            address="local", object_store_memory=_OBJECT_STORE_BYTES, include_dashboard=False,
            **quiet,
        )  # fmt: skip
    except Exception as error:  # its daemons': any kind
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"Ray does not start on this machine ({reason}); leave out --ray."
        ) from error


def _anywhere(weights: str | None) -> str | None:
    """A path of weights as a worker finds it, whose working folder is another."""
    return os.path.abspath(weights) if weights is not None and os.path.exists(weights) else weights


def _row(item: Item) -> dict[str, str]:
    def path(value: Path | None) -> str:
        return "" if value is None else str(value.absolute())

    return {
        "image": path(item.image),
        "upper": path(item.upper),
        "lower": path(item.lower),
        "folder": str(item.folder),
        "name": item.name,
    }


def _item(row: dict[str, str]) -> Item:
    return Item(
        Path(row["image"]),
        Path(row["upper"]) if row["upper"] else None,
        Path(row["lower"]) if row["lower"] else None,
        Path(row["folder"]),
        row["name"],
    )
