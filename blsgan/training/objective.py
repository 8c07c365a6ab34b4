"""What is minimised: the generator's terms, the supervisor's own loss, and the reported error.

Two families of terms can be weighed against each other. The published ones are root mean square
errors and the supervisor's verdict (Wang et al., BLS-GAN, AAAI 2025), through the fused ops. The
lite recipe's are logarithms: quality is reported as the mean over images of the PSNR in the
overlap, so that is what is minimised, the logarithm of each image's mean squared error. An L1 or
L2 mean over a batch would be ruled by its worst images. A floor keeps images that are already good
from dominating.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blsgan.ops import layer_loss, reconstruction_loss, supervisor_loss
from blsgan.ops.fused.supervisor_loss import TargetLayers
from blsgan.training.config import LossConfig
from blsgan.training.pairs import PairBatch
from blsgan.training.trainer import Terms

MIN_PX = 20  # an image with fewer pixels to compare says nothing


def layer_errors(layers: Tensor, batch: PairBatch, supports: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of each layer over its known pixels, weighed by how sure they are.

    Args:
        layers: [B,N,H,W], predicted.
        batch: the truth.
        supports: {0,1} [B,N,H,W], where layers may be more than 0. A truth may be known beyond,
            where nothing can be learnt.

    Returns:
        errors [B,N] and usable, bool [B,N]: whether at least 20 sure pixels are known.
    """
    known = batch.weight * supports
    weight = known.sum(dim=(2, 3))
    squared = ((layers - batch.layers) ** 2 * known).sum(dim=(2, 3))
    return squared / weight.clamp(min=1), weight >= MIN_PX


def objective(
    layers: Tensor,
    separated: Tensor,
    soft_tissue: Tensor,
    batch: PairBatch,
    config: LossConfig,
    *,
    synthetic: int | None = None,
    verdict: Tensor | None = None,
    supports: Tensor | None = None,
    law: float = 0.0,
) -> Terms:
    """The generator's objective.

    Args:
        layers: [B,N,H,W], predicted, before they are made exact.
        separated: [B,N,H,W], the same as a user gets them; they may be those of ``layers``. Both
            are learnt from alike.
        soft_tissue: [B] or [B,1,H,W], predicted.
        batch: the truth; its synthetic pairs are those whose k is known.
        config: weights of the terms.
        synthetic: the number of synthetic pairs, which come first; all by default.
        verdict: the supervisor's logits [B,2N,H,W] for ``separated``, where it takes part.
        supports: {0,1} [B,N,H,W], where layers may be more than 0; the masks by default.
        law: between display and attenuation, by which layers compose.

    Returns:
        ``synthetic_db`` and ``visits_db`` are a layer's mean squared error in dB (minus its PSNR),
        averaged over layers; ``soft_tissue`` is the mean absolute error of k on synthetic pairs;
        ``layer``, ``reconstruction`` and ``supervisor`` are the terms of those weights in the
        configuration, there where the weight is not 0.
    """
    supports = batch.masks if supports is None else supports
    errors, usable = layer_errors(layers, batch, supports)
    judged = [errors]
    if separated is not layers:
        judged.append(layer_errors(separated, batch, supports)[0])
    known = ~torch.isnan(batch.soft_tissue)[:, None].expand_as(errors)
    floor = torch.full_like(errors, config.mse_floor)
    if config.visits_mse_floor is not None:
        floor = torch.where(known, floor, config.visits_mse_floor)
    decibels = torch.stack([10 * torch.log10(e + floor) for e in judged]).mean(dim=0)

    def mean(values: Tensor, where: Tensor) -> Tensor:
        kept = torch.where(where, values, torch.zeros_like(values))
        return kept.sum() / where.sum().clamp(min=1)

    synthetic_db = mean(decibels, usable & known)
    visits_db = mean(decibels, usable & ~known)
    of_image = soft_tissue.flatten(1).mean(dim=1) if soft_tissue.dim() > 1 else soft_tissue
    tissue = mean((of_image - torch.nan_to_num(batch.soft_tissue)).abs(), known[:, 0])
    parts = {"synthetic_db": synthetic_db, "visits_db": visits_db, "soft_tissue": tissue}
    total = layers.new_zeros(())
    if config.decibel or config.soft_tissue:
        total = config.decibel * (synthetic_db + config.visits * visits_db)
        total = total + config.soft_tissue * tissue
    if config.layer:
        first = slice(synthetic)
        parts["layer"] = layer_loss(layers[first], batch.layers[first], batch.masks[first])
        total = total + config.layer * parts["layer"]
    if config.reconstruction:
        parts["reconstruction"] = reconstruction_loss(
            separated,
            supports,
            soft_tissue,
            batch.image,
            law=law,
        )
        total = total + config.reconstruction * parts["reconstruction"]
    if verdict is not None:
        parts["supervisor"] = supervisor_loss(verdict, batch.masks)
        total = total + config.supervisor * parts["supervisor"]
    return Terms(total, parts)


@dataclass
class SupervisorBatch:
    """What the supervisor learns from in a step, in one batch of three kinds.

    Attributes:
        layers: [C+S+B,N,H,W]: C radiographs cut out by their masks, S true layers of synthetic
            pairs, B generated layers.
        masks: [C+S+B,N,H,W], theirs.
        counts: (C, S, B).
    """

    layers: Tensor
    masks: Tensor
    counts: tuple[int, int, int]


def supervisor_batch(layers: Tensor, batch: PairBatch, synthetic: int) -> SupervisorBatch:
    """Makes the supervisor's batch.

    Args:
        layers: [B,N,H,W], generated; no gradient flows back to them.
        batch: what they were generated from.
        synthetic: the number of synthetic pairs, which come first. The radiographs cut out are the
            other images, or the synthetic ones where there is no other.
    """
    cut = slice(synthetic if synthetic < len(layers) else 0, None)
    first = slice(synthetic)
    parts = (batch.image[cut] * batch.masks[cut], batch.layers[first], layers.detach())
    masks = batch.masks
    return SupervisorBatch(
        torch.cat([part.to(layers.dtype) for part in parts]),
        torch.cat((masks[cut], masks[first], masks)),
        (len(parts[0]), len(parts[1]), len(parts[2])),
    )


def supervisor_objective(verdict: Tensor, given: SupervisorBatch) -> Tensor:
    """The supervisor's own loss for its logits [C+S+B,2N,H,W] on its batch: the mean of three BCEs.

    In a radiograph cut out, no bone is there, nor separated, where another lies over it (target:
    masks without the overlap, twice); true layers are there and real (M, M); generated ones are
    there and not real (M, 0).
    """
    targets: tuple[TargetLayers, ...] = ("exclusive", "masks", "zeros")
    losses = [
        supervisor_loss(logits, masks, target, "bce")
        for logits, masks, target in zip(
            verdict.split(given.counts), given.masks.split(given.counts), targets, strict=True
        )
    ]
    return torch.stack(losses).mean()
