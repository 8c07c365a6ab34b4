"""Training pairs with a known truth, drawn as whole batches of crops around the overlap.

Two sources: *synthetic* pairs compose two free bones by the Beer-Lambert law (the paper's
pre-training pairs, docs/explanation/evaluation.md, with more shifts, sub-pixel moves, small
rotations, flips, tone curves and bones of different joints); *visit* pairs are real overlaps whose
hidden bone another visit of the same joint shows (``blsgan.data.visits``). Only the pixels of the
overlap have something to learn, so a pair is a crop and no work is spent elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blsgan.data.layout import MIN_OVERLAP_PX, JointImage, overlap_px, read_joint
from blsgan.data.visits import VisitTruth
from blsgan.errors import InputError
from blsgan.ops import compose_layers
from blsgan.synthesis.overlap import PROTOCOL_SHIFT_PX, dilate_by_one
from blsgan.training.config import DataConfig

_DATA = DataConfig()
_NATIVE = (84, 156)  # the crop before zooming: 64x128 px / 0.85 and a margin for the rim's blur
_PROTOCOL_ZOOM = 256 / 240  # the protocol crops 8 px on every side and resizes back
_SMALLEST_PX, _REACH_PX = PROTOCOL_SHIFT_PX  # of each bone
_TAPER_PX = 8  # depth inside a bone from which on a tapered rim has its whole attenuation
_FADE_PX = 16  # beside the overlap: there a taper has faded away
_FULL = 1 - 1e-4  # intensity taken for a saturated pixel: its attenuation stays finite


@dataclass
class PairBatch:
    """A batch of crops.

    Attributes:
        image: float32 [B,1,H,W] in [0,1], 0 outside the bones.
        masks: float32 [B,2,H,W] in {0,1}, upper and lower bone.
        layers: float32 [B,2,H,W], the truth; read it only where ``valid``.
        valid: bool [B,2,H,W], pixels of the overlap where ``layers`` is known.
        soft_tissue: float32 [B], the k composed with; NaN where it is not known.
    """

    image: Tensor
    masks: Tensor
    layers: Tensor
    valid: Tensor
    soft_tissue: Tensor

    @staticmethod
    def join(first: PairBatch, second: PairBatch) -> PairBatch:
        """The two batches one after the other."""
        return PairBatch(*(torch.cat(pair) for pair in zip(
            vars(first).values(), vars(second).values(), strict=True)))

    def to(self, device: torch.device) -> PairBatch:
        """The batch on a device."""
        return PairBatch(*(value.to(device, non_blocking=True) for value in vars(self).values()))


def _uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _chance(generator: torch.Generator, count: int, probability: float) -> Tensor:
    return torch.rand(count, generator=generator) < probability


def _grid(
    centre: Tensor, size: tuple[int, int], shift: Tensor, degrees: Tensor, zoom: Tensor, side: int
) -> Tensor:
    """Sampling grid [B,h,w,2] of a crop around ``centre`` ([B,2] row, column, in pixels).

    The content is moved by ``shift`` ([B,2] rows, columns), turned by ``degrees`` and magnified by
    ``zoom`` about the centre; ``side`` is the length in pixels of the square source.
    """
    rows = torch.arange(size[0], dtype=torch.float32) - size[0] // 2
    columns = torch.arange(size[1], dtype=torch.float32) - size[1] // 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    y = y[None] - shift[:, :1, None]
    x = x[None] - shift[:, 1:, None]
    cosine = (torch.cos(torch.deg2rad(degrees)) / zoom)[:, None, None]
    sine = (torch.sin(torch.deg2rad(degrees)) / zoom)[:, None, None]
    source_y = centre[:, :1, None] + cosine * y - sine * x
    source_x = centre[:, 1:, None] + sine * y + cosine * x
    # align_corners=False: pixel i lies at (2 i + 1) / side - 1.
    return torch.stack(((2 * source_x + 1) / side - 1, (2 * source_y + 1) / side - 1), dim=-1)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def rim(overlap: Tensor) -> Tensor:
    """The rim of an overlap, {0,1} [B,1,H,W]: its inner border dilated by a 4x4 window.

    A cheap stand-in for the protocol's dilated Canny edge, which ``synthesize_overlap`` follows to
    the pixel: it differs by a pixel at corners, less than what the crop's resampling does.
    """
    inner = overlap - (1 - F.max_pool2d(1 - overlap, 3, stride=1, padding=1))
    return F.max_pool2d(F.pad(inner.clamp(min=0), (1, 2, 1, 2)), 4, stride=1)


def taper_rims(layers: Tensor, masks: Tensor, loss: Tensor) -> Tensor:
    """Layers whose bones thin out towards their border where they lie over another bone.

    In a real overlap a bone's thin lip lies over its neighbour; shifting free bones lays a dense
    cortical plate there. The attenuation -log(1 - layer) is multiplied by 1 - loss at a bone's
    border, by 1 from 8 px inside it on, linearly between; beside the overlap the loss fades away
    within 16 px.

    Args:
        layers: float32 [B,2,H,W] in [0,1].
        masks: float32 [B,2,H,W] in {0,1}.
        loss: float32 [B] in [0,1], share of the attenuation that is lost at the border.
    """
    depth, inside = torch.zeros_like(masks), masks
    for _ in range(_TAPER_PX):
        depth = depth + inside / _TAPER_PX
        inside = 1 - F.max_pool2d(1 - inside, 3, stride=1, padding=1)
    half, quarter = _FADE_PX // 2, _FADE_PX // 4
    near = F.max_pool2d(masks[:, :1] * masks[:, 1:], 2 * half + 1, stride=1, padding=half)
    for _ in range(2):  # 1 in the whole overlap, falling over 16 px
        near = F.avg_pool2d(near, 2 * quarter + 1, stride=1, padding=quarter,
                            count_include_pad=False)
    kept = 1 - loss[:, None, None, None] * (1 - depth) * near
    attenuation = -torch.log((1 - layers).clamp(min=1 - _FULL))
    return torch.where(kept < 1, 1 - torch.exp(-attenuation * kept), layers) * masks


def _beside(generator: torch.Generator) -> torch.Generator:
    """A generator whose draws depend on ``generator``'s state and leave it as it is."""
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    return torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=copy)))


def _blur3(image: Tensor) -> Tensor:
    """3x3 Gaussian ([1 2 1] / 4 in both directions), borders replicated."""
    kernel = torch.tensor([0.25, 0.5, 0.25])
    image = F.conv2d(F.pad(image, (0, 0, 1, 1), mode="replicate"), kernel.view(1, 1, 3, 1))
    return F.conv2d(F.pad(image, (1, 1, 0, 0), mode="replicate"), kernel.view(1, 1, 1, 3))


def _tone(generator: torch.Generator, count: int, probability: float, spread: float) -> Tensor:
    """Exponents of a tone curve [B,1,1,1], 1 for the images that keep theirs."""
    exponent = torch.exp(spread * torch.randn(count, generator=generator))
    keep = ~_chance(generator, count, probability)
    return torch.where(keep, torch.ones(count), exponent.clamp(0.7, 1.4))[:, None, None, None]


def _flip(generator: torch.Generator, *images: Tensor) -> list[Tensor]:
    flip = _chance(generator, len(images[0]), 0.5)[:, None, None, None]
    return [torch.where(flip, image.flip(3), image) for image in images]


def _check_one_square_size(images: Sequence[np.ndarray]) -> None:
    sizes = {image.shape for image in images}
    if len(sizes) > 1 or any(height != width for height, width in sizes):
        raise InputError(f"the images have sizes {sorted(sizes)} px; training needs square images "
                         "of one size")


class SyntheticPairs:
    """Synthetic overlaps from joints without one.

    Args:
        images: the joints to draw from; those with an overlap (>= 20 px) are left out.

    Raises:
        InputError: no joint without overlap and with a background is among ``images``, or the
            images are not square and of one size.
    """

    def __init__(self, images: Sequence[JointImage]) -> None:
        pixels, masks, backgrounds, centres = [], [], [], []
        for joint in images:
            arrays = read_joint(joint)
            if arrays.background is None or overlap_px(arrays.masks) >= MIN_OVERLAP_PX:
                continue
            grown = np.stack([dilate_by_one(mask).astype(np.uint8) for mask in arrays.masks])
            centre = self._joint_centre(arrays.masks)
            if centre is None:
                continue
            pixels.append(arrays.image)
            masks.append(grown)
            backgrounds.append(arrays.background)
            centres.append(centre)
        if not pixels:
            raise InputError("the split has no joint without overlap and with a soft-tissue "
                             "background; synthetic pairs cannot be made of it")
        _check_one_square_size(pixels)
        self.pixels = torch.from_numpy(np.stack(pixels))
        self.masks = torch.from_numpy(np.stack(masks))
        self.backgrounds = torch.from_numpy(np.stack(backgrounds))
        self.centres = torch.tensor(centres, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.pixels)

    @staticmethod
    def _joint_centre(masks: np.ndarray) -> tuple[float, float] | None:
        """Where the overlap lands when both bones move by the largest shift of the protocol."""
        upper = np.roll(masks[0], _REACH_PX, axis=0)
        upper[:_REACH_PX] = False
        lower = np.roll(masks[1], -_REACH_PX, axis=0)
        lower[-_REACH_PX:] = False
        rows, columns = np.nonzero(upper & lower)
        if len(rows) < MIN_OVERLAP_PX:
            return None
        return float(np.round(rows.mean())), float(np.round(columns.mean()))

    def draw(
        self,
        count: int,
        generator: torch.Generator,
        data: DataConfig = _DATA,
        *,
        protocol: bool = False,
        size: tuple[int, int] | None = None,
    ) -> PairBatch:
        """Draws ``count`` pairs.

        No key of ``data`` moves another one's random numbers: two draws from the same state differ
        only in what the keys say.

        Args:
            count: number of pairs.
            generator: source of all randomness.
            data: how the pairs vary. On average ``protocol_share`` of them have the protocol's
                settings, with tone curves, flips and another place in the crop; the others vary
                more.
            protocol: the evaluation protocol's settings alone (integer shifts of 2..8 px, k from
                the background, nothing else).
            size: rows and columns of the crop, ``data.crop`` by default.
        """
        g, n = generator, count
        size = data.crop if size is None else size
        taper = data.rim_taper * torch.rand(n, generator=_beside(g)) if data.rim_taper else None
        plain = torch.ones(n, dtype=torch.bool) if protocol else _chance(g, n, data.protocol_share)
        first = torch.randint(len(self), (n,), generator=g)
        partner = torch.randint(len(self), (n,), generator=g)
        second = torch.where(plain | ~_chance(g, n, 0.3), first, partner)

        whole = torch.randint(_SMALLEST_PX, _REACH_PX + 1, (n, 2), generator=g).float()
        free = torch.stack((_uniform(g, n, 1, 14), _uniform(g, n, 1, 14)), dim=1)
        rows = torch.where(plain[:, None], whole, free)
        columns = torch.where(plain, torch.zeros(n), 2.5 * torch.randn(n, generator=g))
        turns = torch.where(plain[:, None], torch.zeros(n, 2), 3 * torch.randn(n, 2, generator=g))
        tone = _tone(g, n, 0.4 if data.tone_curves and not protocol else 0.0, 0.15)

        side = self.pixels.shape[-1]
        one, none = torch.ones(n), torch.zeros(n)
        # The window follows the overlap: the mean of the two moves.
        follow = torch.round((rows[:, 0] - rows[:, 1]) / 2)
        layers, masks, tissue = [], [], None
        for bone, (index, sign) in enumerate(((first, 1.0), (second, -1.0))):
            shift = torch.stack((sign * rows[:, bone] - follow, columns * sign / 2), dim=1)
            grid = _grid(self.centres[index], _NATIVE, shift, turns[:, bone], one, side)
            stack = torch.stack((self.pixels[index], self.masks[index, bone] * 255), dim=1)
            stack = _sample(stack.float() / 255, grid)
            mask = (stack[:, 1:] > 0.5).float()
            layers.append(stack[:, :1].clamp(0, 1) ** tone * mask)
            masks.append(mask)
            if bone == 0:
                still = _grid(self.centres[index], _NATIVE, torch.stack((-follow, none), dim=1),
                              none, one, side)
                tissue = _sample(self.backgrounds[index].float()[:, None] / 255, still) ** tone
        layer, mask = torch.cat(layers, dim=1), torch.cat(masks, dim=1)
        if taper is not None:
            layer = taper_rims(layer, mask, torch.where(plain, none, taper))
        overlap = mask[:, :1] * mask[:, 1:]
        assert tissue is not None
        k = (tissue * overlap).sum(dim=(1, 2, 3)) / overlap.sum(dim=(1, 2, 3)).clamp(min=1)
        # Real overlaps are explained by larger k than the background's (evaluation.md).
        drawn = _chance(g, n, data.soft_tissue_share)
        other = torch.where(drawn, _uniform(g, n, *data.soft_tissue_range), k)
        k = torch.where(plain, k, other)

        image = compose_layers(layer, mask, k).clamp(0, 1)
        image = torch.where(rim(overlap) > 0, _blur3(image), image)
        image = image * (mask.amax(dim=1, keepdim=True))

        zoom = torch.where(plain, torch.full((n,), _PROTOCOL_ZOOM), _uniform(g, n, 0.9, 1.2))
        jitter_rows = torch.round(_uniform(g, n, -6, 6)) if not protocol else none
        jitter_columns = torch.round(_uniform(g, n, -16, 16)) if not protocol else none
        offset = _uniform(g, 2 * n, -0.5, 0.5).view(n, 2)
        middle = torch.tensor([[_NATIVE[0] // 2, _NATIVE[1] // 2]]).float().expand(n, 2)
        grid = _grid(middle + offset, size, torch.stack((jitter_rows, jitter_columns), dim=1), none,
                     zoom, 1)
        # _grid assumes a square source of side 1: rescale to the native crop's rows and columns.
        scale = torch.tensor([1 / _NATIVE[1], 1 / _NATIVE[0]])
        grid = (grid + 1) * scale - 1
        out = _sample(torch.cat((image, layer, mask), dim=1), grid)
        image, layer, mask = out[:, :1], out[:, 1:3], (out[:, 3:] > 0.5).float()
        image = image * mask.amax(dim=1, keepdim=True)
        if not protocol:
            image, layer, mask = _flip(g, image, layer, mask)
        layer = layer * mask
        valid = (mask[:, :1] * mask[:, 1:] > 0).expand(-1, 2, -1, -1)
        return PairBatch(image, mask, layer, valid, k)


def _variation(
    generator: torch.Generator, count: int, data: DataConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How crops of real overlaps are varied: shift [B,2], degrees [B], zoom [B], tone [B,1,1,1]."""
    g, n = generator, count
    still = _chance(g, n, 0.4)
    turn = torch.where(still, torch.zeros(n), 4 * torch.randn(n, generator=g))
    zoom = torch.where(still, torch.ones(n), _uniform(g, n, 0.92, 1.12))
    shift = torch.stack((
        torch.round(_uniform(g, n, -8, 8)), torch.round(_uniform(g, n, -20, 20))
    ), dim=1)
    return shift, turn, zoom, _tone(g, n, 0.5 if data.tone_curves else 0.0, 0.15)


class VisitPairs:
    """Real overlaps with the truth of another visit.

    Args:
        truths: what :func:`blsgan.data.visits.visit_truths` found.
        images: the images it was given, to read A's pixels and masks.

    Raises:
        InputError: there is no truth at all, or the images are not square and of one size.
    """

    def __init__(self, truths: Sequence[VisitTruth], images: Sequence[JointImage]) -> None:
        if not truths:
            raise InputError("the split has no overlap that another visit of the joint shows free")
        listed = {image.name: image for image in images}
        names = sorted({truth.image for truth in truths})
        position = {name: index for index, name in enumerate(names)}
        arrays = [read_joint(listed[name]) for name in names]
        _check_one_square_size([a.image for a in arrays])
        self.pixels = torch.from_numpy(np.stack([a.image for a in arrays]))
        self.masks = torch.from_numpy(np.stack([a.masks.astype(np.uint8) for a in arrays]))
        self.index = torch.tensor([position[truth.image] for truth in truths])
        self.bone = torch.tensor([truth.bone for truth in truths])
        self.truth = torch.from_numpy(np.stack([t.truth.astype(np.float16) for t in truths]))
        self.valid = torch.from_numpy(np.stack([t.valid.astype(np.uint8) for t in truths]))
        self.centres = torch.tensor([
            [np.round(np.mean(where)) for where in np.nonzero(truth.valid)] for truth in truths
        ], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.index)

    def draw(
        self, count: int, generator: torch.Generator, data: DataConfig = _DATA
    ) -> PairBatch:
        """Draws ``count`` pairs of size ``data.crop``, varied by shift, rotation, zoom, tone and
        flip."""
        g = generator
        record = torch.randint(len(self), (count,), generator=g)
        batch = self._crops(record, data.crop, *_variation(g, count, data))
        image, masks, layers, valid = _flip(
            g, batch.image, batch.masks, batch.layers, batch.valid
        )
        return PairBatch(image, masks, layers, valid, batch.soft_tissue)

    def all(self, *, size: tuple[int, int] = _DATA.crop) -> PairBatch:
        """Every pair once, its pixels as they are."""
        n = len(self)
        still, one = torch.zeros(n), torch.ones(n)
        return self._crops(
            torch.arange(n), size, torch.zeros(n, 2), still, one, one[:, None, None, None]
        )

    def _crops(
        self, record: Tensor, size: tuple[int, int], shift: Tensor, turn: Tensor, zoom: Tensor,
        tone: Tensor,
    ) -> PairBatch:
        image_index, bone = self.index[record], self.bone[record]
        grid = _grid(self.centres[record], size, shift, turn, zoom, self.pixels.shape[-1])
        stack = torch.cat((
            self.pixels[image_index].float()[:, None] / 255,
            self.truth[record].float()[:, None],
            self.masks[image_index].float(),
            self.valid[record].float()[:, None],
        ), dim=1)
        out = _sample(stack, grid)
        image, truth = out[:, :1].clamp(0, 1) ** tone, out[:, 1:2].clamp(0, 1) ** tone
        mask, valid = (out[:, 2:4] > 0.5).float(), out[:, 4:] > 0.5
        chosen = F.one_hot(bone, 2)[:, :, None, None].bool()
        image = image * mask.amax(dim=1, keepdim=True)
        overlap = mask[:, :1] * mask[:, 1:] > 0
        return PairBatch(
            image, mask, truth.expand(-1, 2, -1, -1), valid & chosen & overlap,
            torch.full((len(record),), float("nan")),
        )


class RealOverlaps:
    """Real overlaps whose truth nobody knows: what the supervisor sees beside separated layers.

    Args:
        images: the joints to draw from; those without an overlap (< 20 px) are left out.

    Raises:
        InputError: there is no overlap at all, or the images are not square and of one size.
    """

    def __init__(self, images: Sequence[JointImage]) -> None:
        arrays = [read_joint(joint) for joint in images]
        arrays = [a for a in arrays if overlap_px(a.masks) >= MIN_OVERLAP_PX]
        if not arrays:
            raise InputError("the split has no joint with an overlap; set data.real=0")
        _check_one_square_size([a.image for a in arrays])
        self.pixels = torch.from_numpy(np.stack([a.image for a in arrays]))
        self.masks = torch.from_numpy(np.stack([a.masks.astype(np.uint8) for a in arrays]))
        self.centres = torch.tensor([
            [np.round(np.mean(where)) for where in np.nonzero(a.masks.all(axis=0))] for a in arrays
        ], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.pixels)

    def draw(
        self, count: int, generator: torch.Generator, data: DataConfig = _DATA
    ) -> PairBatch:
        """Draws ``count`` overlaps, varied as visit pairs are; no pixel is valid."""
        record = torch.randint(len(self), (count,), generator=generator)
        shift, turn, zoom, tone = _variation(generator, count, data)
        grid = _grid(self.centres[record], data.crop, shift, turn, zoom, self.pixels.shape[-1])
        stack = torch.cat((
            self.pixels[record].float()[:, None] / 255, self.masks[record].float()
        ), dim=1)
        out = _sample(stack, grid)
        image, masks = out[:, :1].clamp(0, 1) ** tone, (out[:, 1:] > 0.5).float()
        image, masks = _flip(generator, image * masks.amax(dim=1, keepdim=True), masks)
        return PairBatch(
            image, masks, torch.zeros_like(masks), torch.zeros_like(masks, dtype=torch.bool),
            torch.full((count,), float("nan")),
        )
