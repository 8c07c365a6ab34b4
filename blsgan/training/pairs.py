"""Training pairs with a known truth, drawn as whole batches of crops around the overlap.

Two sources: *synthetic* pairs compose two free bones by the Beer-Lambert law (the paper's
pre-training pairs, docs/explanation/evaluation.md, with more shifts, sub-pixel moves, small
rotations, flips, tone curves and bones of different joints); *visit* pairs are real overlaps whose
hidden bone another visit of the same joint shows (``blsgan.data.visits``). Only the pixels of the
overlap have something to learn, so a pair is a crop and no work is spent elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blsgan.data.layout import (
    MIN_OVERLAP_PX,
    JointArrays,
    JointImage,
    overlap_px,
    read_joint,
)
from blsgan.data.visits import VisitTruth
from blsgan.errors import InputError
from blsgan.joint.geometry import bounding_box
from blsgan.joint.zone import REACH_PX, grown
from blsgan.ops import compose_layers
from blsgan.synthesis.overlap import PROTOCOL_SHIFT_PX, dilate_by_one
from blsgan.training.config import DataConfig

_DATA = DataConfig()
_CPU = torch.device("cpu")
_USUAL, _NATIVE = (64, 128), (84, 156)  # a crop, and what is composed for it to be cut from
_ZOOM = (0.9, 1.2)  # in that cut
_PROTOCOL_ZOOM = 256 / 240  # the protocol crops 8 px on every side and resizes back
_PARTNER_SHARE = 0.3  # of the pairs without the protocol's settings
_SMALLEST_PX, _REACH_PX = PROTOCOL_SHIFT_PX  # of each bone
_TAPER_PX = 8  # depth inside a bone from which on a tapered rim has its whole attenuation
_FADE_PX = 16  # beside the overlap: there a taper has faded away
_LEAST_CORRELATION = 0.8  # of a registered visit that would count nothing
_PENUMBRA_PX = 2  # beside the other bone's mask at another visit
_BESIDE = 0.5  # what a pixel beside the overlap counts: those are more, and easier
_FULL = 1 - 1e-4  # intensity taken for a saturated pixel: its attenuation stays finite


def _native(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns to compose for a crop of ``size``: it reaches farther than the usual one, or
    less far, by the difference of their sizes before the smallest zoom."""
    rows, columns = (
        native + 2 * math.ceil((side - usual) / (2 * _ZOOM[0]))
        for native, side, usual in zip(_NATIVE, size, _USUAL, strict=True)
    )
    return rows, columns


@dataclass
class PairBatch:
    """A batch of crops.

    Attributes:
        image: float32 [B,1,H,W] in [0,1]; of synthetic pairs 0 outside the bones.
        masks: float32 [B,2,H,W] in {0,1}, upper and lower bone.
        layers: float32 [B,2,H,W], the truth; read it only where ``valid``.
        weight: float32 [B,2,H,W] in [0,1], how sure ``layers`` is; 0 where it is not known.
        soft_tissue: float32 [B], the k composed with; NaN where it is not known.
    """

    image: Tensor
    masks: Tensor
    layers: Tensor
    weight: Tensor
    soft_tissue: Tensor

    @property
    def valid(self) -> Tensor:
        """bool [B,2,H,W], where ``layers`` is known."""
        return self.weight > 0

    @staticmethod
    def join(first: PairBatch, second: PairBatch) -> PairBatch:
        """The two batches one after the other."""
        return PairBatch(
            *(
                torch.cat(pair)
                for pair in zip(vars(first).values(), vars(second).values(), strict=True)
            )
        )

    def rows(self, which: slice) -> PairBatch:
        """Some of the crops."""
        return PairBatch(*(value[which] for value in vars(self).values()))

    def to(self, device: torch.device) -> PairBatch:
        """The batch on a device."""
        return PairBatch(*(value.to(device, non_blocking=True) for value in vars(self).values()))


def sent(device: torch.device, *drawn: Tensor) -> list[Tensor]:
    """What the host has drawn, on the device; from pinned memory no copy makes the host wait."""
    if device.type != "cuda":
        return [value.to(device) for value in drawn]
    return [value.pin_memory().to(device, non_blocking=True) for value in drawn]


def _uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _chance(generator: torch.Generator, count: int, probability: float) -> Tensor:
    return torch.rand(count, generator=generator) < probability


@dataclass(frozen=True)
class Window:
    """Where the pixels of a crop lie in an image, in px as (x, y).

    Attributes:
        origin: [B,2], the place of the crop's first pixel.
        across: [B,2], the step from one column to the next.
        down: [B,2], the step from one row to the next.
        size: rows and columns of the crop.
    """

    origin: Tensor
    across: Tensor
    down: Tensor
    size: tuple[int, int]

    @staticmethod
    def around(
        centre: Tensor, size: tuple[int, int], shift: Tensor, degrees: Tensor, zoom: Tensor
    ) -> Window:
        """A crop around ``centre``; the content is moved by ``shift`` (both [B,2] row, column),
        turned by ``degrees`` and magnified by ``zoom`` about the centre."""
        cosine = torch.cos(torch.deg2rad(degrees)) / zoom
        sine = torch.sin(torch.deg2rad(degrees)) / zoom
        across = torch.stack((cosine, -sine), dim=1)
        down = torch.stack((sine, cosine), dim=1)
        origin = centre.flip(1)
        origin = origin - (size[0] // 2 + shift[:, :1]) * down
        return Window(origin - (size[1] // 2 + shift[:, 1:]) * across, across, down, size)

    def mirrored(self, where: Tensor) -> Window:
        """The crops read from right to left in those ``where`` [B] says so."""
        where = where[:, None]
        last = self.origin + (self.size[1] - 1) * self.across
        return Window(
            torch.where(where, last, self.origin),
            torch.where(where, -self.across, self.across),
            self.down,
            self.size,
        )

    def rows(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest row of the image that each crop touches, int64 [B]."""
        height, width = self.size
        across, down = (width - 1) * self.across[:, 1], (height - 1) * self.down[:, 1]
        ends = self.origin[:, 1:] + torch.stack(
            (torch.zeros_like(down), across, down, across + down), dim=1
        )
        return ends.amin(dim=1).floor().long(), ends.amax(dim=1).floor().long() + 1

    def sample(self, images: Tensor, first_row: Tensor | None = None) -> Tensor:
        """Bilinear samples [B,C,h,w] of ``images`` [B,C,H,W], 0 outside.

        Args:
            images: what is sampled.
            first_row: int64 [B], the row of the whole image that ``images`` begins with; 0 by
                default.
        """
        origin = self.origin
        if first_row is not None:
            origin = torch.stack((origin[:, 0], origin[:, 1] - first_row), dim=1)
        # align_corners=False: pixel i of n lies at (2 i + 1) / n - 1.
        device = images.device
        ends = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float32)
        ends = ends.to(device, non_blocking=True)
        rows = torch.arange(self.size[0], device=device)[:, None]
        columns = torch.arange(self.size[1], device=device)[:, None]
        rows = rows * (2 * self.down / ends)[:, None]
        columns = columns * (2 * self.across / ends)[:, None]
        rows = rows + ((2 * origin + 1) / ends - 1)[:, None]
        return F.grid_sample(
            images,
            rows[:, :, None] + columns[:, None],
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )

    def sample_of(self, planes: Tensor, index: Tensor, channels: Sequence[int]) -> Tensor:
        """:meth:`sample` of ``planes[index][:, channels]``, of which only the rows that are
        needed are read.

        Args:
            planes: [M,C,H,W]; uint8 stands for 0..1 in steps of 1 / 255.
            index: [B], which of the M.
            channels: which of the C.
        """
        if planes.device.type != "cpu":  # to know how many rows, the host would have to wait
            whole = torch.stack([planes[index, channel] for channel in channels], dim=1).float()
            return self.sample(whole / 255 if planes.dtype == torch.uint8 else whole)
        count, side = planes.shape[1:3]
        low, high = self.rows()
        low = low.clamp(0, side - 1)
        height = int((high.clamp(0, side - 1) - low).max()) + 1
        first = low.clamp(max=side - height)
        plane = index[:, None] * count + torch.tensor(channels)
        row = (plane * side + first[:, None])[:, :, None] + torch.arange(height)
        lines = planes.flatten(0, 2).index_select(0, row.flatten()).float()
        if planes.dtype == torch.uint8:
            lines /= 255
        return self.sample(lines.view(*row.shape, planes.shape[3]), first)


def _planes(arrays: Sequence[JointArrays]) -> Tensor:
    """uint8 [M,3,H,W]: each radiograph, and 255 where its upper and its lower bone lie."""
    _check_one_square_size([a.image for a in arrays])
    return torch.from_numpy(
        np.stack([np.stack((a.image, *(255 * a.masks.astype(np.uint8)))) for a in arrays])
    )


def rim(overlap: Tensor) -> Tensor:
    """The rim of an overlap, {0,1} [B,1,H,W]: its inner border dilated by a 4x4 window.

    A cheap stand-in for the protocol's dilated Canny edge, which ``synthesize_overlap`` follows to
    the pixel: it differs by a pixel at corners, less than what the crop's resampling does.
    """
    outside = F.pad(1 - overlap, (1, 1, 1, 1))
    inner = overlap * _running_maximum(outside, 3)
    return _running_maximum(F.pad(inner, (1, 2, 1, 2)), 4)


def _running_maximum(image: Tensor, side: int) -> Tensor:
    """The largest value of each ``side`` x ``side`` window, 2 <= ``side`` <= 4, without padding."""
    for dim in (2, 3):
        reach = image.shape[dim] - 1
        image = torch.maximum(image.narrow(dim, 0, reach), image.narrow(dim, 1, reach))
        rest = side - 2
        if rest:
            reach -= rest
            image = torch.maximum(image.narrow(dim, 0, reach), image.narrow(dim, rest, reach))
    return image


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
        near = F.avg_pool2d(
            near, 2 * quarter + 1, stride=1, padding=quarter, count_include_pad=False
        )
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
    # Sums of slices: a convolution of one channel takes several times as long on a CPU.
    image = F.pad(image, (1, 1, 1, 1), mode="replicate")
    for dim in (2, 3):
        reach = image.shape[dim] - 2
        first, middle, last = (image.narrow(dim, start, reach) for start in range(3))
        image = (first + last + 2 * middle) / 4
    return image


def _tone(generator: torch.Generator, count: int, probability: float, spread: float) -> Tensor:
    """Exponents of a tone curve [B], 1 for the images that keep theirs."""
    exponent = torch.exp(spread * torch.randn(count, generator=generator))
    keep = ~_chance(generator, count, probability)
    return torch.where(keep, torch.ones(count), exponent.clamp(0.7, 1.4))


def _toned(images: Tensor, tone: Tensor) -> Tensor:
    """``images`` [B,C,H,W] in [0,1] to the power of ``tone`` [B]; powers of 1 cost nothing."""
    if images.device.type != "cpu":  # to know which, the host would have to wait
        return torch.where(
            (tone == 1)[:, None, None, None], images, images ** tone[:, None, None, None]
        )
    (changed,) = torch.nonzero(tone != 1, as_tuple=True)
    return images.index_copy(0, changed, images[changed] ** tone[changed, None, None, None])


def _check_one_square_size(images: Sequence[np.ndarray]) -> None:
    sizes = {image.shape for image in images}
    if len(sizes) > 1 or any(height != width for height, width in sizes):
        raise InputError(
            f"the images have sizes {sorted(sizes)} px; training needs square images of one size"
        )


@dataclass(frozen=True)
class Placing:
    """How synthetic pairs are made of the joints that they are drawn from, each [B,...].

    Attributes:
        plain: bool [B], which have the protocol's settings.
        first, second: int64 [B], the joints of the upper and of the lower bone.
        rows, turns: [B,2], how far each bone moves towards the other, and degrees.
        columns: [B], how far apart the bones move sideways.
        tone: [B], exponents of a tone curve.
        tissue_drawn: bool [B], which are composed with ``soft_tissue`` [B] and not the joint's own.
        follow: [B], rows by which the first crop follows the overlap.
        middle, jitter: [B,2], row and column of the second crop's middle, and by how much the
            content moves in it.
        zoom, mirrored: [B], of the second crop.
    """

    plain: Tensor
    first: Tensor
    second: Tensor
    rows: Tensor
    columns: Tensor
    turns: Tensor
    tone: Tensor
    tissue_drawn: Tensor
    soft_tissue: Tensor
    follow: Tensor
    middle: Tensor
    jitter: Tensor
    zoom: Tensor
    mirrored: Tensor

    @staticmethod
    def drawn(
        g: torch.Generator,
        n: int,
        joints: int,
        native: tuple[int, int],
        data: DataConfig,
        protocol: bool,
    ) -> Placing:
        """Draws ``n`` of them from ``joints``; see :meth:`SyntheticPairs.draw`."""
        plain = torch.ones(n, dtype=torch.bool) if protocol else _chance(g, n, data.protocol_share)
        first = torch.randint(joints, (n,), generator=g)
        partner = torch.randint(joints, (n,), generator=g)
        stranger = torch.where(plain, 0.0, _PARTNER_SHARE)
        second = torch.where(torch.rand(n, generator=g) < stranger, partner, first)

        whole = torch.randint(_SMALLEST_PX, _REACH_PX + 1, (n, 2), generator=g).float()
        free = torch.stack((_uniform(g, n, 1, 14), _uniform(g, n, 1, 14)), dim=1)
        rows = torch.where(plain[:, None], whole, free)
        columns = torch.where(plain, torch.zeros(n), 2.5 * torch.randn(n, generator=g))
        turns = torch.where(plain[:, None], torch.zeros(n, 2), 3 * torch.randn(n, 2, generator=g))
        tone = _tone(g, n, 0.4 if data.tone_curves and not protocol else 0.0, 0.15)

        # Real overlaps are explained by larger k than the background's (evaluation.md).
        tissue_drawn = _chance(g, n, data.soft_tissue_share)
        soft_tissue = _uniform(g, n, *data.soft_tissue_range)
        zoom = torch.where(plain, torch.full((n,), _PROTOCOL_ZOOM), _uniform(g, n, *_ZOOM))
        none = torch.zeros(n)
        jitter_rows = torch.round(_uniform(g, n, -6, 6)) if not protocol else none
        jitter_columns = torch.round(_uniform(g, n, -16, 16)) if not protocol else none
        offset = _uniform(g, 2 * n, -0.5, 0.5).view(n, 2)
        mirrored = torch.zeros(n, dtype=torch.bool) if protocol else _chance(g, n, 0.5)
        return Placing(
            plain,
            first,
            second,
            rows,
            columns,
            turns,
            tone,
            tissue_drawn,
            soft_tissue,
            follow=torch.round((rows[:, 0] - rows[:, 1]) / 2),  # the mean of the two moves
            middle=offset + torch.tensor([native[0] // 2, native[1] // 2]),
            jitter=torch.stack((jitter_rows, jitter_columns), dim=1),
            zoom=zoom,
            mirrored=mirrored,
        )

    def to(self, device: torch.device) -> Placing:
        """The same on a device."""
        return Placing(*sent(device, *vars(self).values()))


class SyntheticPairs:
    """Synthetic overlaps from joints without one.

    Args:
        images: the joints to draw from; those with an overlap (>= 20 px) are left out.
        device: where they lie and pairs are made; random numbers are always the host's, so that
            every device draws the same.

    Raises:
        InputError: no joint without overlap and with a background is among ``images``, or the
            images are not square and of one size.
    """

    def __init__(self, images: Sequence[JointImage], device: torch.device = _CPU) -> None:
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
            raise InputError(
                "the split has no joint without overlap and with a soft-tissue "
                "background; synthetic pairs cannot be made of it"
            )
        _check_one_square_size(pixels)
        # uint8 [M,4,H,W]: the radiograph, 255 where the upper and the lower bone lie, soft tissue.
        self.planes = torch.from_numpy(
            np.stack(
                [
                    np.stack((image, *(255 * mask), background))
                    for image, mask, background in zip(pixels, masks, backgrounds, strict=True)
                ]
            )
        ).to(device)
        self.centres = torch.tensor(centres, dtype=torch.float32).to(device)
        self.device = device

    def __len__(self) -> int:
        return len(self.planes)

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
        size = data.crop if size is None else size
        native = _native(size)
        taper = None
        if data.rim_taper:
            taper = data.rim_taper * torch.rand(count, generator=_beside(generator))
        at = Placing.drawn(generator, count, len(self), native, data, protocol).to(self.device)
        layers, masks, tissue = self._moved(at, native)
        if taper is not None:
            (taper,) = sent(self.device, taper)
            layers = taper_rims(layers, masks, torch.where(at.plain, 0.0, taper))
        overlap = masks[:, :1] * masks[:, 1:]
        k = (tissue * overlap).sum(dim=(1, 2, 3)) / overlap.sum(dim=(1, 2, 3)).clamp(min=1)
        k = torch.where(at.plain | ~at.tissue_drawn, k, at.soft_tissue)

        image = compose_layers(layers, masks, k).clamp(0, 1)
        image = torch.where(rim(overlap) > 0, _blur3(image), image)
        image = image * (masks.amax(dim=1, keepdim=True))

        window = Window.around(at.middle, size, at.jitter, torch.zeros_like(at.zoom), at.zoom)
        out = window.mirrored(at.mirrored).sample(torch.cat((image, layers, masks), dim=1))
        image, layers, masks = out[:, :1], out[:, 1:3], (out[:, 3:] > 0.5).float()
        image = image * masks.amax(dim=1, keepdim=True)
        layers = layers * masks
        weight = (masks[:, :1] * masks[:, 1:]).expand(-1, 2, -1, -1)
        return PairBatch(image, masks, layers, weight, k)

    def _moved(self, at: Placing, native: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Both bones where they overlap: layers and masks [B,2,h,w], soft tissue [B,1,h,w]."""
        none = torch.zeros_like(at.zoom)
        layers, masks = [], []
        for bone, (index, sign) in enumerate(((at.first, 1.0), (at.second, -1.0))):
            rows, columns = sign * at.rows[:, bone] - at.follow, at.columns * sign / 2
            shift = torch.stack((rows, columns), dim=1)
            window = Window.around(
                self.centres[index], native, shift, at.turns[:, bone], torch.ones_like(at.zoom)
            )
            stack = window.sample_of(self.planes, index, (0, 1 + bone))
            mask = (stack[:, 1:] > 0.5).float()
            layers.append(_toned(stack[:, :1].clamp(0, 1), at.tone) * mask)
            masks.append(mask)
        still = Window.around(
            self.centres[at.first],
            native,
            torch.stack((-at.follow, none), dim=1),
            none,
            torch.ones_like(at.zoom),
        )
        tissue = _toned(still.sample_of(self.planes, at.first, (3,)), at.tone)
        return torch.cat(layers, dim=1), torch.cat(masks, dim=1), tissue


@dataclass(frozen=True)
class Variation:
    """How crops of real overlaps differ from the radiographs that they are cut from, each [B,...].

    Attributes:
        shift: [B,2] rows and columns; degrees, zoom and mirrored [B]: of the crop.
        gain, offset: [B], of the intensities.
        moved: [B,2,2], rows and columns by which each mask lies beside its bone.
        border: [B,2], share of a blurred mask from which on a pixel counts as the bone: below one
            half the mask grows.
        redrawn: bool [B], whose masks are changed so.
    """

    shift: Tensor
    degrees: Tensor
    zoom: Tensor
    mirrored: Tensor
    gain: Tensor
    offset: Tensor
    moved: Tensor
    border: Tensor
    redrawn: Tensor

    @staticmethod
    def drawn(g: torch.Generator, n: int, data: DataConfig, device: torch.device) -> Variation:
        still = _chance(g, n, 0.3)
        none, one = torch.zeros(n), torch.ones(n)
        degrees = torch.where(still, none, 4 * torch.randn(n, generator=g))
        zoom = torch.where(still, one, torch.exp(0.07 * torch.randn(n, generator=g)))
        shift = torch.stack(
            (torch.round(_uniform(g, n, -8, 8)), torch.round(_uniform(g, n, -8, 8))), dim=1
        )
        mirrored = _chance(g, n, 0.5)
        gain, offset = 0.06 * torch.randn(n, generator=g), 0.02 * torch.randn(n, generator=g)
        if not data.tone_curves:
            gain, offset = none, none
        moved = torch.randn(n, 2, 2, generator=g)
        border = (0.5 + 0.15 * torch.randn(n, 2, generator=g)).clamp(0.2, 0.8)
        redrawn = _chance(g, n, data.redrawn_share)
        return Variation(
            *sent(
                device,
                shift,
                degrees,
                zoom,
                mirrored,
                torch.exp(gain),
                offset,
                moved,
                border,
                redrawn,
            )
        )

    def window(self, centres: Tensor, size: tuple[int, int]) -> Window:
        window = Window.around(centres, size, self.shift, self.degrees, self.zoom)
        return window.mirrored(self.mirrored)

    def toned(self, images: Tensor) -> Tensor:
        """``images`` [B,C,H,W] with gain and offset, in [0,1]."""
        gain, offset = self.gain[:, None, None, None], self.offset[:, None, None, None]
        return (images * gain + offset).clamp(0, 1)

    def masks(self, planes: Tensor, index: Tensor, window: Window) -> Tensor:
        """{0,1} [B,2,h,w]: both masks of ``planes[index]``, see :meth:`mask`."""
        return torch.cat([self.mask(planes, index, window, bone) for bone in (0, 1)], dim=1)

    def mask(self, planes: Tensor, index: Tensor, window: Window, bone: int) -> Tensor:
        """{0,1} [B,1,h,w]: a mask of ``planes[index]`` as drawn, or as another reader, or a
        network, would draw it: moved, grown or shrunk by up to 2 px, and smoothed."""
        redrawn = self.redrawn[:, None]
        by = torch.where(redrawn, self.moved[:, bone], 0.0)
        moved = Window(
            window.origin - by[:, :1] * window.down - by[:, 1:] * window.across,
            window.across,
            window.down,
            window.size,
        )
        drawn = moved.sample_of(planes, index, (1 + bone,))
        smooth = drawn
        for _ in range(2):
            smooth = F.avg_pool2d(smooth, 3, stride=1, padding=1, count_include_pad=False)
        other = smooth > self.border[:, bone, None, None, None]
        return torch.where(redrawn[:, :, None, None], other, drawn > 0.5).float()


def _averaged(
    truths: Sequence[VisitTruth], overlap: np.ndarray, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The truth of one bone by all visits that show it, and its weight, float32 [H,W].

    A visit counts by how well it was registered, and less where, there, the other bone's blurred
    edge may reach or the bone itself ends, or beside the ``overlap`` [H,W]; only pixels that are
    ``near`` it [H,W] count.
    """
    total, weight = np.zeros(near.shape, np.float32), np.zeros(near.shape, np.float32)
    for truth in truths:
        sure = ((truth.correlation - _LEAST_CORRELATION) / (1 - _LEAST_CORRELATION)) ** 2
        clear, doubted = np.abs(truth.clear_px) > _PENUMBRA_PX, np.float32(sure / 2)
        beyond = (truth.clear_px < 0) & clear
        share = near * np.where(beyond | truth.valid, doubted, np.float32(0))
        share = np.where(near & clear & ~beyond, np.float32(sure), share)
        share = np.where(overlap, share, _BESIDE * share)
        total += share * truth.truth
        weight += share
    return np.divide(total, weight, out=total, where=weight > 0), np.minimum(weight, 1)


class VisitPairs:
    """Real overlaps with the truth of other visits, in the overlap and beside it.

    Args:
        truths: what :func:`blsgan.data.visits.visit_truths` found.
        images: the images it was given, to read A's pixels and masks.
        device: see :class:`SyntheticPairs`.

    Raises:
        InputError: there is no truth at all, or the images are not square and of one size.
    """

    def __init__(
        self,
        truths: Sequence[VisitTruth],
        images: Sequence[JointImage],
        device: torch.device = _CPU,
    ) -> None:
        if not truths:
            raise InputError("the split has no overlap that another visit of the joint shows free")
        listed = {image.name: image for image in images}
        names = sorted({truth.image for truth in truths})
        arrays = [read_joint(listed[name]) for name in names]
        self.planes = _planes(arrays).to(device)
        known = []
        for name, array in zip(names, arrays, strict=True):
            overlap = np.asarray(array.masks.all(axis=0))
            near = grown(overlap, REACH_PX)
            bones = [
                _averaged([t for t in truths if t.image == name and t.bone == bone], overlap, near)
                for bone in (0, 1)
            ]
            known.append(np.stack([*(b[0] for b in bones), *(b[1] for b in bones)]))
        # float16 [M,4,H,W]: the truth of both bones, and its weights.
        self.known = torch.from_numpy(np.stack(known).astype(np.float16)).to(device)
        self.centres = _overlap_centres(arrays).to(device)
        # A joint of many visits would rule: its images are drawn less often.
        joints = [listed[name].joint for name in names]
        self.chances = torch.tensor([joints.count(joint) ** -0.5 for joint in joints])

    def __len__(self) -> int:
        return len(self.planes)

    def draw(self, count: int, generator: torch.Generator, data: DataConfig = _DATA) -> PairBatch:
        """Draws ``count`` pairs of size ``data.crop``, varied in place, tone and masks."""
        device = self.planes.device
        (record,) = sent(
            device, torch.multinomial(self.chances, count, replacement=True, generator=generator)
        )
        varied = Variation.drawn(generator, count, data, device)
        window = varied.window(self.centres[record], data.crop)
        masks = varied.masks(self.planes, record, window)
        return self._crops(record, window, masks, varied.toned)

    def all(self, *, size: tuple[int, int] = _DATA.crop) -> PairBatch:
        """Every pair once, its pixels as they are."""
        still = torch.zeros_like(self.centres)
        window = Window.around(self.centres, size, still, still[:, 0], still[:, 0] + 1)
        record = torch.arange(len(self), device=still.device)
        masks = (window.sample_of(self.planes, record, (1, 2)) > 0.5).float()
        return self._crops(record, window, masks, lambda images: images)

    def _crops(
        self,
        record: Tensor,
        window: Window,
        masks: Tensor,
        toned: Callable[[Tensor], Tensor],
    ) -> PairBatch:
        image = toned(window.sample_of(self.planes, record, (0,)).clamp(0, 1))
        known = window.sample_of(self.known, record, (0, 1, 2, 3))
        # A truth next to where none is known was mixed with nothing.
        whole = window.sample_of((self.known[:, 2:] > 0).half(), record, (0, 1)) > 0.999
        return PairBatch(
            image,
            masks,
            toned(known[:, :2].clamp(0, 1)),
            known[:, 2:] * whole,
            torch.full((len(record),), float("nan"), device=record.device),
        )


def _overlap_centres(arrays: Sequence[JointArrays]) -> Tensor:
    """The middles (row, column) of the overlaps' bounding boxes, float32 [M,2]."""
    boxes = [bounding_box(np.asarray(a.masks.all(axis=0))) for a in arrays]
    centres = [(math.floor((t + b) / 2), math.floor((le + r) / 2)) for t, le, b, r in boxes]
    return torch.tensor(centres, dtype=torch.float32)


class RealOverlaps:
    """Real overlaps whose truth nobody knows: what the supervisor sees beside separated layers.

    Args:
        images: the joints to draw from; those without an overlap (< 20 px) are left out.
        device: see :class:`SyntheticPairs`.

    Raises:
        InputError: there is no overlap at all, or the images are not square and of one size.
    """

    def __init__(self, images: Sequence[JointImage], device: torch.device = _CPU) -> None:
        arrays = [read_joint(joint) for joint in images]
        arrays = [a for a in arrays if overlap_px(a.masks) >= MIN_OVERLAP_PX]
        if not arrays:
            raise InputError("the split has no joint with an overlap; set data.real=0")
        self.planes = _planes(arrays).to(device)
        self.centres = _overlap_centres(arrays).to(device)

    def __len__(self) -> int:
        return len(self.planes)

    def draw(self, count: int, generator: torch.Generator, data: DataConfig = _DATA) -> PairBatch:
        """Draws ``count`` overlaps, varied as visit pairs are; no pixel is valid."""
        device = self.planes.device
        (record,) = sent(device, torch.randint(len(self), (count,), generator=generator))
        varied = Variation.drawn(generator, count, data, device)
        window = varied.window(self.centres[record], data.crop)
        masks = varied.masks(self.planes, record, window)
        return PairBatch(
            varied.toned(window.sample_of(self.planes, record, (0,)).clamp(0, 1)),
            masks,
            torch.zeros_like(masks),
            torch.zeros_like(masks),
            torch.full((count,), float("nan"), device=device),
        )
