"""Training the joint locator: what a step sees depends on seed and step alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from blsgan.anatomy import JOINTS, LANDMARKS, PROMISED, WIDTH_SHARES
from blsgan.data.hands import MarkedHand, hands_digest, read_hands
from blsgan.data.splits import is_validation
from blsgan.errors import InputError, UsageError
from blsgan.joint.geometry import HEATMAP_PX
from blsgan.models.locator import LocatorNetwork
from blsgan.models.weights import load_locator
from blsgan.progress import Track
from blsgan.tasks.joints import decode_heatmaps
from blsgan.tasks.task import LOCATION
from blsgan.training.config import LocationConfig
from blsgan.training.distributed import World
from blsgan.training.hands import ELSEWHERE, HandViews, ViewBatch
from blsgan.training.optimisers import (
    learning_rate_share,
    optimiser_state,
    restore_optimiser,
    update_average,
)
from blsgan.training.trainer import Recipe, Terms, Trainer, placed

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


class LocationTrainer(Trainer):
    """Views of hands, network, its average, optimiser, and the step they stand at.

    Args:
        config: the run's configuration.
        hands: every hand of the dataset; the split by file is made here.
        device: where the network runs.
        world: one process; more are refused.

    Raises:
        InputError: there are no hands for training or none for validation.
        UsageError: several processes.
    """

    def __init__(
        self,
        config: LocationConfig,
        hands: Sequence[MarkedHand],
        device: torch.device,
        world: World | None = None,
    ) -> None:
        super().__init__(config, device, world)
        if self.world.size > 1:
            raise UsageError("a locator is trained by one process; start it without torchrun")
        self.config, self.steps = config, config.steps
        training, validation = split(hands)
        data = config.data
        self._views = HandViews(
            training, phantom_share=data.phantom_share, negative_share=data.negative_share
        )
        self._validation = HandViews(validation, phantom_share=0, negative_share=0).all()
        torch.manual_seed(config.seed)
        network = LocatorNetwork(config.model.widths, config.model.blocks)
        self.network = placed(network, device)
        self.average: LocatorNetwork = copy.deepcopy(self.network)
        self.average.requires_grad_(False).eval()
        self._parameters: list[Tensor] = list(self.network.parameters())
        optimiser = config.optimiser
        self._optimiser = torch.optim.AdamW(
            self._parameters,
            lr=optimiser.learning_rate,
            betas=optimiser.betas,
            weight_decay=optimiser.weight_decay,
        )

    def part(self) -> tuple[str, int]:
        return self.config.name, self.steps

    def start_from(self, weights: Path) -> None:
        for module in (self.network, self.average):
            _load_first(module, weights, self.config)

    def train_step(self) -> Terms:
        config = self.config
        batch = self._views.draw(config.data.batch, (config.seed, self.step))
        batch = ViewBatch(*(value.to(self.device) for value in vars(batch).values()))
        rate = config.optimiser.learning_rate * learning_rate_share(
            self.step, config.steps, config.optimiser
        )
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        with self.autocast():
            logits = self.network(batch.image)
        loss = location_loss(logits.float(), batch.points)
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, config.optimiser.clip_norm)
        self._optimiser.step()
        update_average(self.average, self._parameters, config.optimiser.ema_decay, self.step)
        self.step += 1
        return Terms(loss)

    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights on validation hands, upright and at one size.

        ``mcp_within_01``, ``mcp_within_025``, ``pip_within_025``: share of the joints located
        within 0.1 or 0.25 bone widths; ``confidence``: mean over the joints.
        """
        found = []
        with torch.inference_mode():
            for start in range(0, len(self._validation.image), 8):
                image = self._validation.image[start : start + 8].to(self.device)
                found.append(self.average(image).float().cpu())
        decoded = [decode_heatmaps(logits) for logits in torch.cat(found).numpy()]
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
        image = self._validation.image[:4]
        with torch.inference_mode():
            logits = self.average(image.to(self.device)).float().cpu()
        flat = logits.flatten(start_dim=2)
        everything = torch.cat((torch.zeros_like(flat[..., :1]), flat), dim=-1).logsumexp(dim=-1)
        found = torch.exp(logits - everything[..., None, None])[:, : len(JOINTS)].amax(1, True)
        found = torch.nn.functional.interpolate(found, scale_factor=2.0)
        row = torch.cat((image, found / found.amax(dim=(2, 3), keepdim=True)), dim=1)
        return torch.cat([torch.cat(list(planes), dim=1) for planes in row])

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average}

    def state(self) -> dict[str, Tensor]:
        return {f"optimiser.{k}": v for k, v in optimiser_state(self._optimiser).items()}

    def restore_state(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        restore_optimiser(self._optimiser, groups["optimiser"])


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


def _first_network(config: LocationConfig, weights: Path | None) -> LocatorNetwork:
    network = LocatorNetwork(config.model.widths, config.model.blocks)
    if weights is not None:
        _load_first(network, weights, config)
    return network


def _load_first(network: LocatorNetwork, weights: Path, config: LocationConfig) -> None:
    try:
        network.load_state_dict(load_locator(weights).state_dict())
    except RuntimeError as error:
        raise InputError(
            f"{weights}: is not of the configuration's model "
            f"({config.model.widths}, {config.model.blocks})"
        ) from error


def _check_data(config: LocationConfig, hands: Sequence[MarkedHand]) -> None:
    split(hands)


def _load(
    config: LocationConfig,
    hands: Sequence[MarkedHand],
    run: Path,
    device: torch.device,
    track: Track,
) -> Sequence[MarkedHand]:
    return hands


RECIPE = Recipe(
    LOCATION,
    limits="one or two whole hands in the picture, like those it was trained on",
    check=_first_network,
    check_data=_check_data,
    load=_load,
    trainer=LocationTrainer,
    read=read_hands,
    digest=hands_digest,
)
