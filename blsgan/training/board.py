"""TensorBoard: scalars at every report and a panel of pictures at every validation."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from blsgan.errors import UsageError


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

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Numbers by name: the terms of ``training``, the figures of a ``validation``."""
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def panel(self, step: int, picture: Tensor) -> None:
        """What the run makes of a few validation joints: [H,W], clipped to [0,1]."""
        self._writer.add_image("validation", picture.clamp(0, 1)[None], step)
