"""A network that answers on one grid, whatever it answers: mask segmenter and joint locator."""

from __future__ import annotations

import os
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import WeightsError
from blsgan.tasks.backend import Backend, create
from blsgan.tasks.task import Task, WeightsFile

Float32 = NDArray[np.float32]
Own = TypeVar("Own", bound="GridPredictor")


class GridPredictor:
    """Weights of a task whose network sees pictures of one size."""

    task: ClassVar[Task]
    answer: ClassVar[tuple[int, int, int]]
    """Channels, rows and columns of the network's answer."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @classmethod
    def from_pretrained(
        cls: type[Own],
        path_or_name: os.PathLike[str] | str | None = None,
        backend: str = "auto",
        *,
        threads: int | None = None,
        device: str | None = None,
    ) -> Own:
        """Load weights: the shipped ones by default, or by name, or from a file.

        Arguments and errors are those of :meth:`blsgan.Separator.from_pretrained`.
        """
        return cls(create(backend, path_or_name, threads, cls.task, device))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.backend}>"

    @property
    def weights(self) -> WeightsFile:
        """Name, path and SHA-256 of the weights in use."""
        return self.backend.weights

    def _logits(self, pictures: Float32) -> Float32:
        """Logits [B,*answer] of pictures [B,H,W]; refuses weights that give none."""
        (logits,) = self.backend.run(np.ascontiguousarray(pictures[:, None]))
        if logits.shape != (len(pictures), *self.answer) or not np.isfinite(logits).all():
            raise WeightsError(
                f"{self.weights.path} gave NaN, infinite values or another shape "
                f"({list(logits.shape)}); use other weights."
            )
        return logits
