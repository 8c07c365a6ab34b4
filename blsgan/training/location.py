"""Training the joint locator: what a step sees depends on seed and step alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from blsgan.anatomy import JOINTS, LANDMARKS, PROMISED, WIDTH_SHARES
from blsgan.data.hands import MarkedHand, hands_digest, read_hands
from blsgan.data.splits import is_validation
from blsgan.errors import InputError
from blsgan.joint.geometry import HEATMAP_PX
from blsgan.models.locator import LocatorNetwork
from blsgan.models.weights import load_locator
from blsgan.tasks.joints import decode_heatmaps
from blsgan.tasks.task import LOCATION
from blsgan.training.config import LocationConfig
from blsgan.training.grid import GridTrainer, grid_recipe, picture_rows
from blsgan.training.hands import ELSEWHERE, HandViews, ViewBatch

SPREAD_CELLS = 1.0
"""Standard deviation of the target around a landmark, in cells of the heatmap."""


def location_loss(logits: Tensor, points: Tensor) -> Tensor:
    """Cross-entropy of each landmark's place against a Gaussian around the truth: a scalar.

    The outcomes are the cells and "elsewhere" with logit 0, the truth of a landmark that is not in
    the view. The mean is over landmarks whose truth is known.

    Args:
        logits: float32 [B,L,96,96].
        points: float32 [B,L,2], x and y in cells, -1 elsewhere, NaN not known.
    """
    known = torch.isfinite(points).all(dim=-1)
    inside = known & (points[..., 0] != ELSEWHERE)
    places = torch.where(inside[..., None], points, torch.zeros_like(points))
    axis = torch.arange(HEATMAP_PX, dtype=logits.dtype, device=logits.device)
    shares = torch.exp(-0.5 * ((axis - places[..., None]) / SPREAD_CELLS) ** 2)
    shares = shares / shares.sum(dim=-1, keepdim=True)  # [B,L,2,96]: the Gaussian is separable
    expected = torch.einsum("blh,blhw,blw->bl", shares[:, :, 1], logits, shares[:, :, 0])
    flat = logits.flatten(start_dim=2)
    everything = torch.cat((torch.zeros_like(flat[..., :1]), flat), dim=-1).logsumexp(dim=-1)
    error = everything - torch.where(inside, expected, torch.zeros_like(expected))
    return (error * known).sum() / known.sum().clamp(min=1)


class LocationTrainer(GridTrainer[LocationConfig, ViewBatch]):
    """Of marked hands, divided by file."""

    network_type, load = LocatorNetwork, staticmethod(load_locator)

    def pictures(
        self, samples: Sequence[MarkedHand]
    ) -> tuple[Callable[[int, Sequence[int]], ViewBatch], ViewBatch]:
        training, validation = split(samples)
        data = self.config.data
        views = HandViews(
            training, phantom_share=data.phantom_share, negative_share=data.negative_share
        )
        return views.draw, HandViews(validation, phantom_share=0, negative_share=0).all()

    def loss(self, logits: Tensor, batch: ViewBatch) -> Tensor:
        return location_loss(logits, batch.points)

    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights on validation hands, upright and at one size.

        ``mcp_within_01``, ``mcp_within_025``, ``pip_within_025``: share of the joints located
        within 0.1 or 0.25 bone widths; ``confidence``: mean over the joints.
        """
        decoded = [decode_heatmaps(logits) for logits in self.answers().numpy()]
        points = np.stack([places for places, _ in decoded])
        confidences = np.stack([values for _, values in decoded])
        truth = self._validation.points.numpy().astype(np.float64)
        errors = np.hypot(*np.moveaxis(points - truth, -1, 0))
        unit = np.hypot(
            *np.moveaxis(
                truth[:, LANDMARKS.index("mcp3")] - truth[:, LANDMARKS.index("pip3")], -1, 0
            )
        )
        joints = slice(0, len(JOINTS))
        widths = unit[:, None] * np.array([WIDTH_SHARES[joint] for joint in JOINTS])
        shares = errors[:, joints] / widths
        mcp, others = shares[:, : len(PROMISED)], shares[:, len(PROMISED) :]
        return {
            "mcp_within_01": _share(mcp, 0.1),
            "mcp_within_025": _share(mcp, 0.25),
            "pip_within_025": _share(others, 0.25),
            "confidence": float(confidences[:, joints].mean()),
        }

    def picture(self) -> Tensor:
        """A row for each of four hands: picture, and where all its joints were found."""
        flat = self.answers(4).flatten(start_dim=2)
        everything = torch.cat((torch.zeros_like(flat[..., :1]), flat), dim=-1).logsumexp(dim=-1)
        found = torch.exp(flat - everything[..., None])[:, : len(JOINTS)].amax(1, True)
        found = found.unflatten(2, (HEATMAP_PX, HEATMAP_PX))
        found = torch.nn.functional.interpolate(found, scale_factor=2.0)
        found = found / found.amax(dim=(2, 3), keepdim=True)
        return picture_rows(torch.cat((self._validation.image[:4], found), dim=1))


def split(hands: Sequence[MarkedHand]) -> tuple[list[MarkedHand], list[MarkedHand]]:
    """Hands for training and for validation, by a fixed hash of their file's name.

    Raises:
        InputError: one of the two is empty.
    """
    training = [hand for hand in hands if not is_validation(hand.path.stem)]
    validation = [hand for hand in hands if is_validation(hand.path.stem)]
    if not training or not validation:
        raise InputError(
            f"the dataset's {len(hands)} hands leave {len(training)} for training and "
            f"{len(validation)} for validation; both must have some"
        )
    return training, validation


def _share(errors: np.ndarray, limit: float) -> float:
    known = errors[np.isfinite(errors)]
    return float((known < limit).mean()) if known.size else float("nan")


RECIPE = grid_recipe(
    LOCATION,
    LocationTrainer,
    split,
    limits="one or two whole hands in the picture, like those it was trained on",
    read=read_hands,
    digest=hands_digest,
)
