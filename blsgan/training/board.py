"""TensorBoard: scalars at every report and a panel of pictures at every validation."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blsgan.errors import UsageError
from blsgan.training.pairs import PairBatch

if TYPE_CHECKING:
    from blsgan.training.loop import Progress


def check_tensorboard() -> None:
    """Asks for TensorBoard before training, not in the middle of it.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard needs TensorBoard, which is not installed; pip install "
            "'blsgan[tensorboard]'"
        )


class Board:
    """Writes into a folder for ``tensorboard --logdir``.

    Args:
        folder: made when missing.
        step: where the run stands; what an earlier process wrote beyond it is not shown.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *details: object) -> None:
        self._writer.close()

    def scalars(self, progress: Progress) -> None:
        """The terms of a report, and the figures of a validation."""
        for name, value in progress.terms.items():
            self._writer.add_scalar(f"training/{name}", value, progress.step)
        for name, value in (progress.validation or {}).items():
            self._writer.add_scalar(f"validation/{name}", value, progress.step)

    def panel(self, step: int, pairs: PairBatch, layers: Tensor) -> None:
        """A row for each pair: image, predicted layers, true layers, error times four.

        Args:
            step: of the run.
            pairs: validation pairs.
            layers: [B,N,H,W], predicted for them.
        """
        error = 4 * (layers - pairs.layers).abs() * pairs.valid
        row = torch.cat((pairs.image, layers, pairs.layers, error), dim=1)
        picture = torch.cat([torch.cat(list(planes), dim=1) for planes in row])
        self._writer.add_image("validation", picture.clamp(0, 1)[None], step)
