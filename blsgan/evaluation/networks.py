"""Trained networks as the protocol's methods and judges: weights, whole runs, supervisors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from blsgan.errors import BackendError, NoJointError, UsageError
from blsgan.evaluation.methods import Answer, Method, Overlap, from_separator
from blsgan.joint.geometry import around, bounding_box, cut
from blsgan.joint.window import Window, around_overlap
from blsgan.tasks.segmentation import Segmenter
from blsgan.tasks.separation import Separator
from blsgan.tasks.task import Weights, find_weights
from blsgan.training import CHECKPOINTS, CONFIG_FILE, WEIGHTS

if TYPE_CHECKING:
    from blsgan.evaluation.layers import Predict
    from blsgan.evaluation.protocol import Supervise
    from blsgan.models.generator import Generator


def run_of(path_or_name: str | Path | None) -> Path | None:
    """The run folder of ``blsgan train`` that ``path_or_name`` is, or None where it is none."""
    path = Path(path_or_name) if path_or_name is not None else None
    return path if path is not None and (path / CONFIG_FILE).is_file() else None


def from_weights(
    path_or_name: str | Path | None = None, backend: str = "auto", *, mirrored: bool = False
) -> Method:
    """The separator of a set of weights, by name, file, folder, or the run that trained them.

    Weights that ``Separator`` does not run, a free head, or that were trained on whole images, are
    run in PyTorch on the window that ``Separator`` would take, or on the whole image. ``mirrored``
    is :class:`Separator`'s.

    Raises:
        WeightsError: there are none, or they are damaged.
        BackendError: the backend cannot run here.
        UsageError: the run has not written its weights yet, or the weights need PyTorch and another
            backend or ``mirrored`` was asked for.
    """
    run = run_of(path_or_name)
    if run is not None:
        path_or_name = run / WEIGHTS
        if not path_or_name.is_dir():
            raise UsageError(f"{run}: has no weights yet; finish it with `blsgan train --resume`")
    weights = find_weights(path_or_name)
    whole = trained_on_images(weights)
    # Weights with a graph are Separator's, and no torch is imported to see that.
    if weights.safetensors is not None and (whole or weights.onnx is None):
        generator, sha256 = _generator(weights)
        if whole or generator.head != "exact":
            if backend not in ("auto", "torch"):
                raise UsageError(
                    f"{weights.safetensors}: runs in PyTorch alone; leave out --backend {backend}"
                )
            if mirrored:
                raise UsageError(
                    f"{weights.safetensors}: runs as it was trained alone; leave out --mirrored"
                )
            return from_generator(weights, generator, sha256, whole=whole)
    return from_separator(
        Separator.from_pretrained(path_or_name, backend=backend, mirrored=mirrored)
    )


def _generator(weights: Weights) -> tuple[Generator, str]:
    try:
        from blsgan.models import load_generator
    except ImportError as error:
        raise BackendError(
            f"{weights.safetensors}: needs PyTorch, which is not installed; "
            "pip install 'blsgan[train]'"
        ) from error
    assert weights.safetensors is not None
    file = weights.load(weights.safetensors)
    return load_generator(file.path, file.data), file.sha256


def trained_on_images(weights: Weights) -> bool:
    """Whether weights were last trained on whole images and not on crops, as the card says."""
    try:
        config = weights.card["trained"]["config"]
        stages = config.get("stages") or [config]
        made = [stage for stage in stages if stage.get("steps") or stage.get("epochs")]
        return bool((made or stages)[-1]["data"].get("pairs") == "images")
    except (KeyError, TypeError, AttributeError, IndexError):
        return False


def from_generator(
    weights: Weights, generator: Generator, sha256: str, *, whole: bool = False
) -> Method:
    """A generator in PyTorch; outside the zone a layer is the image, as ``Separator``'s.

    Args:
        weights: its weights, for the record.
        generator: the network.
        sha256: of its file.
        whole: it sees the whole image, padded with 0 below and on the right to a multiple of the
            generator's sides, instead of the window around the overlap.
    """
    import torch

    def run(sample: Overlap) -> Answer:
        overlap = sample.masks.sum(axis=0) >= 2
        layers = (sample.image * sample.masks).astype(np.float32)
        if not overlap.any():
            return Answer(layers)
        multiple = generator.size_multiple
        window = around_overlap(sample.masks, multiple)
        if whole or window is None:
            height, width = (side + -side % multiple for side in overlap.shape)
            window = Window(0, 0, height, width)
        image = window.resample(sample.image)
        masks = np.stack([window.resample(mask) for mask in sample.masks])
        with torch.inference_mode():
            separated, soft_tissue = generator.separate(
                torch.from_numpy(image)[None, None],
                torch.from_numpy((masks >= 0.5).astype(np.float32))[None],
            )
        both = window.zone(sample.masks, generator.reach_px)
        top, left, bottom, right = box = bounding_box(both)
        inside = window.restore(separated[0].float().cpu().numpy(), box)
        part = np.s_[top:bottom, left:right]
        for layer, found in zip(layers, inside, strict=True):
            layer[part] = np.where(both[part], found, layer[part])
        return Answer(layers, float(soft_tissue.mean()), zone=both)

    return Method(
        f"blsgan {weights.name}",
        run,
        {
            "weights": weights.name,
            "weights_file": weights.safetensors.name if weights.safetensors else "",
            "sha256": sha256,
            "architecture": weights.architecture or "unknown",
            "backend": f"torch, {'whole images' if whole else 'window around the overlap'}",
            "backend_version": str(torch.__version__),
        },
    )


def load_supervisor(run: str | Path) -> Supervise | None:
    """The supervisor that a run trained, from its newest checkpoint; None where it has none.

    It sees what it saw in training: the whole image, or a crop around the overlap.

    Raises:
        UsageError: ``run`` is no run, or its configuration is not valid.
        InputError: no checkpoint can be read.
    """
    import torch

    from blsgan.models.supervisor import Supervisor
    from blsgan.training.checkpoint import load_checkpoint
    from blsgan.training.config import TrainingConfig
    from blsgan.training.run import run_config

    config = run_config(run)
    if not isinstance(config, TrainingConfig) or not config.has_supervisor():
        return None
    tensors = load_checkpoint(Path(run) / CHECKPOINTS, lambda text: None).tensors
    state = {
        key.removeprefix("supervisor."): value
        for key, value in tensors.items()
        if key.startswith("supervisor.")
    }
    supervisor = Supervisor(2, config.supervisor.widths)
    supervisor.load_state_dict(state)
    supervisor.eval()
    made = [stage.data for stage in config.stages if stage.steps or stage.epochs]
    data = made[-1] if made else config.data
    size = data.crop if data.pairs == "crops" else None
    multiple = 2 ** (len(config.supervisor.widths) - 1)

    def supervise(layers: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if size is not None:
            top, left, bottom, right = bounding_box(masks[0] & masks[1])
            centre = (top + bottom) / 2, (left + right) / 2
            window = max(size[0], bottom - top), max(size[1], right - left)
            box = around(centre, window, masks.shape[1:])
            layers, masks = cut(layers, box), cut(masks, box)
        height, width = layers.shape[1:]
        pad = ((0, 0), (0, -height % multiple), (0, -width % multiple))
        with torch.inference_mode():
            picture = torch.from_numpy(np.pad(layers, pad).astype(np.float32))[None]
            probabilities = torch.sigmoid(supervisor(picture))[0, :, :height, :width]
        return probabilities.cpu().numpy(), masks

    return supervise


def predict_masks() -> Predict:
    """The shipped segmenter: image float32 [H,W] -> masks bool [2,H,W], None where it finds no
    joint.

    Raises:
        WeightsError: its weights are damaged.
        BackendError: nothing can run it here.
    """
    segmenter = Segmenter.from_pretrained()

    def predict(image: np.ndarray) -> np.ndarray | None:
        try:
            return segmenter(image).masks
        except NoJointError:
            return None

    return predict
