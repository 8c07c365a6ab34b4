"""TensorBoard: scalars at every report and a panel of pictures at every validation."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from blsgan.errors import UsageError
from blsgan.io.atomic import output_error

_LOG = logging.getLogger(__name__)


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
    """Writes into a folder for ``tensorboard --logdir``, as long as that can be written.

    A full disk costs the board and not the run: a warning says so.

    Args:
        folder: made when missing.
        step: where the run stands; what an earlier process wrote beyond it is not shown.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._failed = False
        self._hook = threading.excepthook
        self._writer: Any = None
        with self._writing():
            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def __enter__(self) -> Board:
        threading.excepthook = self._heard
        return self

    def __exit__(self, *details: object) -> None:
        with self._writing():
            if self._writer is not None:
                self._writer.close()
        threading.excepthook = self._hook

    def _heard(self, raised: threading.ExceptHookArgs) -> None:
        # TensorBoard writes in a thread, which ends in a traceback; the next call raises the error.
        ours = type(raised.thread).__module__.partition(".")[0] == "tensorboard"
        if not (ours and isinstance(raised.exc_value, OSError)):
            self._hook(raised)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failed:
                self._failed = True
                _LOG.warning(
                    "%s The run goes on without TensorBoard.", output_error(self._folder, error)
                )

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Numbers by name: the terms of ``training``, the figures of a ``validation``."""
        for name, value in values.items():
            self._add("add_scalar", f"{kind}/{name}", value, step)

    def panel(self, step: int, picture: Tensor) -> None:
        """What the run makes of a few validation joints: [H,W], clipped to [0,1]."""
        self._add("add_image", "validation", picture.clamp(0, 1)[None], step)

    def _add(self, what: str, *arguments: Any) -> None:
        with self._writing():
            if not self._failed:
                getattr(self._writer, what)(*arguments)
