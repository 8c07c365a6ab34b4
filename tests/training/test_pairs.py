"""Training pairs obey the physics and the evaluation protocol."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blsgan.data.dataset import load_root
from blsgan.data.layout import read_joint
from blsgan.data.visits import TRAINING, visit_truths
from blsgan.errors import InputError
from blsgan.joint.zone import REACH_PX
from blsgan.models.priors import grown
from blsgan.training.config import DataConfig
from blsgan.training.pairs import (
    RealOverlaps,
    SyntheticPairs,
    VisitPairs,
    Window,
    rim,
    taper_rims,
)


@pytest.fixture(scope="module")
def everything(dataset):
    return load_root(dataset)


@pytest.fixture(scope="module")
def synthetic(everything):
    return SyntheticPairs(everything)


@pytest.fixture(scope="module")
def visits(everything):
    return VisitPairs(list(visit_truths(everything, TRAINING)), everything)


def draw(pairs, count=8, seed=0, data=None, **options):
    random = torch.Generator().manual_seed(seed)
    return pairs.draw(count, random, DataConfig() if data is None else data, **options)


def test_synthetic_pairs_recompose_to_their_image_inside_the_overlap(synthetic):
    batch = draw(synthetic, 16, protocol=True, size=(96, 160))
    masks, layers, k = batch.masks, batch.layers, batch.soft_tissue[:, None, None, None]
    overlap = masks[:, :1] * masks[:, 1:]
    recomposed = 1 - (1 - layers[:, :1]) * (1 - layers[:, 1:]) / (1 - k * overlap)
    # The rim is smoothed and resampled; away from it the law holds but for the resampling.
    inside = 1 - torch.nn.functional.max_pool2d(1 - overlap, 7, stride=1, padding=3)
    assert inside.sum() > 500
    error = ((recomposed - batch.image) * inside).abs().sum() / inside.sum()
    assert error < 0.01
    alone = (masks[:, :1] + masks[:, 1:] == 1).expand(-1, 2, -1, -1) & (masks > 0)
    # Beside the other bone's border, resampling mixes a little of it in.
    near_other = torch.nn.functional.max_pool2d(masks, 7, stride=1, padding=3).flip(1) > 0
    where = alone & ~near_other
    assert where.sum() > 5000
    assert torch.allclose(layers[where], batch.image.expand(-1, 2, -1, -1)[where], atol=1e-6)


def test_synthetic_pairs_stay_in_range_and_out_of_the_background(synthetic):
    batch = draw(synthetic, 24)
    assert batch.image.shape == (24, 1, 64, 128)
    for values in (batch.image, batch.layers, batch.masks):
        assert values.min() >= 0
        assert values.max() <= 1
        assert torch.isfinite(values).all()
    assert set(batch.masks.unique().tolist()) <= {0.0, 1.0}
    assert (batch.image[batch.masks.amax(dim=1, keepdim=True) == 0] == 0).all()
    assert (batch.layers[batch.masks == 0] == 0).all()
    assert not (batch.valid & ~(batch.masks.amin(dim=1, keepdim=True) > 0)).any()
    assert ((batch.soft_tissue > 0) & (batch.soft_tissue < 0.95)).all()


def test_protocol_k_is_the_background_over_the_overlap(synthetic, everything):
    batch = draw(synthetic, 8, protocol=True)
    backgrounds = (
        np.concatenate([read_joint(joint).background.ravel() for joint in everything]) / 255
    )
    assert (batch.soft_tissue >= backgrounds.min() - 1e-6).all()
    assert (batch.soft_tissue <= backgrounds.max() + 1e-6).all()


SWITCHES = {
    "protocol_share": 0.9,
    "soft_tissue_share": 0.9,
    "soft_tissue_range": (0.2, 0.3),
    "tone_curves": False,
    "rim_taper": 0.8,
}


@pytest.mark.parametrize("key", SWITCHES)
def test_no_switch_moves_the_random_numbers_of_the_others(synthetic, visits, everything, key):
    data = DataConfig(**{key: SWITCHES[key]})
    for pairs in (synthetic, visits, RealOverlaps(everything)):
        plain, other = (torch.Generator().manual_seed(3) for _ in range(2))
        first, second = pairs.draw(16, plain), pairs.draw(16, other, data)
        assert torch.equal(plain.get_state(), other.get_state())
        if not key.startswith("protocol"):  # other bones, or moved in other ways
            assert torch.equal(first.masks, second.masks)
        differs = not torch.equal(first.image, second.image)
        assert differs == (pairs is synthetic or key == "tone_curves")


def test_k_comes_from_where_the_switches_say(synthetic):
    narrow = {"protocol_share": 0, "soft_tissue_range": (0.5, 0.55)}
    free = draw(synthetic, 32, data=DataConfig(**narrow, soft_tissue_share=1)).soft_tissue
    assert ((free >= 0.5) & (free <= 0.55)).all()
    assert len(free.unique()) > 8
    given = draw(synthetic, 32, data=DataConfig(**narrow, soft_tissue_share=0)).soft_tissue
    assert (given < 0.45).all()
    mixed = draw(synthetic, 32, data=DataConfig(**narrow)).soft_tissue
    assert ((mixed == free) | (mixed == given)).all()


def test_a_tapered_rim_is_thin_at_the_border_and_whole_inside_and_elsewhere():
    masks = torch.zeros(1, 2, 80, 60)
    masks[0, 0, :40] = 1
    masks[0, 1, 30:] = 1
    layers = 0.5 * masks
    thin = taper_rims(layers, masks, torch.tensor([0.6]))
    kept = torch.log(1 - thin) / torch.log(torch.tensor(0.5))
    upper, lower = kept[0, 0, :40, 30], kept[0, 1, 30:, 30]
    for profile in (upper.flip(0), lower):  # from the border inwards
        assert profile[0] == pytest.approx(1 - 0.6 * 7 / 8, abs=1e-5)
        assert (profile[:8].diff() > 0).all()
        assert profile[8:].numpy() == pytest.approx(1, abs=1e-5)
    assert torch.equal(taper_rims(layers, masks, torch.zeros(1)), layers)
    assert (thin[masks == 0] == 0).all()
    apart = masks.clone()
    apart[0, 1] = 0  # no overlap, no taper
    assert torch.equal(taper_rims(0.5 * apart, apart, torch.ones(1)), 0.5 * apart)


def test_protocol_pairs_are_never_tapered(synthetic):
    tapered = DataConfig(rim_taper=1, protocol_share=1)
    assert torch.equal(
        draw(synthetic, protocol=True).image, draw(synthetic, protocol=True, data=tapered).image
    )
    alike = DataConfig(protocol_share=1)
    assert torch.equal(draw(synthetic, data=tapered).image, draw(synthetic, data=alike).image)


def test_the_same_generator_gives_the_same_pairs(synthetic, visits):
    for pairs in (synthetic, visits):
        first, again, other = draw(pairs), draw(pairs), draw(pairs, seed=1)
        assert torch.equal(first.image, again.image)
        assert torch.equal(first.layers, again.layers)
        assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("options", [{}, {"rim_taper": 0.5, "crop": (96, 160)}])
def test_pairs_are_made_on_the_device_and_the_host_never_waits_for_it(everything, options):
    """On the meta device nothing has a value: what reads one back, or mixes devices, fails."""
    meta = torch.device("meta")
    data = DataConfig(**options)
    truths = list(visit_truths(everything, TRAINING))
    for pairs in (
        SyntheticPairs(everything, meta),
        VisitPairs(truths, everything, meta),
        RealOverlaps(everything, meta),
    ):
        for value in vars(draw(pairs, 3, data=data)).values():
            assert value.device == meta
            assert value.shape[0] == 3
            assert value.ndim == 1 or value.shape[2:] == data.crop


def test_visit_pairs_as_they_are_hold_the_radiograph_s_own_pixels(visits, everything):
    batch = visits.all(size=(256, 256))
    truths = list(visit_truths(everything, TRAINING))
    names = sorted({t.image for t in truths})
    assert len(batch.image) == len(visits) == len(names)
    listed = {joint.name: joint for joint in everything}
    arrays = read_joint(listed[names[0]])
    row, column = (int(value) for value in visits.centres[0])
    assert batch.image[0, 0, 128, 128] == pytest.approx(arrays.image[row, column] / 255, abs=1e-6)
    assert torch.isnan(batch.soft_tissue).all()
    for index, name in enumerate(names):
        known = {t.bone for t in truths if t.image == name}
        assert {bone for bone in (0, 1) if batch.valid[index, bone].any()} <= known
    # A truth is used in the overlap and as far beside it as the other bone's picture reaches.
    overlap = batch.masks.amin(dim=1, keepdim=True)
    assert (batch.valid & (overlap == 0)).any()
    assert not (batch.valid & (grown(overlap, REACH_PX) == 0)).any()
    assert ((batch.weight >= 0) & (batch.weight <= 1)).all()


def test_truths_of_several_visits_are_averaged(everything):
    truths = [t for t in visit_truths(everything, TRAINING) if t.bone == 0]
    one = truths[0]
    brighter = replace(one, truth=one.truth + 0.1)
    alone, together = (
        VisitPairs(given, everything).all(size=(256, 256)) for given in ([one], [one, brighter])
    )
    where = alone.valid[0, 0]
    assert where.any()
    difference = (together.layers - alone.layers)[0, 0][where]
    assert difference.min() >= 0.04
    assert difference.max() <= 0.06
    assert (together.weight >= alone.weight - 1e-3).all()


def test_redrawn_masks_differ_from_the_drawn_ones_by_a_few_pixels(visits):
    drawn = draw(visits, data=DataConfig(redrawn_share=0))
    redrawn = draw(visits, data=DataConfig(redrawn_share=1))
    assert torch.equal(drawn.image, redrawn.image)
    assert 0.001 < (drawn.masks != redrawn.masks).float().mean() < 0.1
    near = torch.nn.functional.max_pool2d(drawn.masks, 13, 1, 6)
    assert (redrawn.masks <= near).float().mean() > 0.999


def test_every_fourth_step_has_large_crops():
    data = DataConfig(crop=(48, 112), large_crop=(64, 128))
    sizes = [data.in_step(step).crop for step in range(8)]
    assert sizes == 2 * (3 * [(48, 112)] + [(64, 128)])
    assert DataConfig(crop=(48, 112)).in_step(3).crop == (48, 112)


def test_a_window_reads_what_whole_images_show():
    """Only some rows of each image are read: at its borders too, turned, mirrored or outside."""
    random = torch.Generator().manual_seed(4)
    planes = torch.randint(256, (3, 2, 64, 64), generator=random, dtype=torch.uint8)
    centre = torch.tensor([[32.0, 30.0], [2.0, 60.0], [70.0, -5.0], [31.5, 32.25]])
    shift = torch.tensor([[0.0, 0.0], [3.0, -2.0], [1.0, 1.0], [0.5, -0.25]])
    degrees, zoom = torch.tensor([0.0, 12.0, -40.0, 90.0]), torch.tensor([1.0, 0.9, 1.2, 2.0])
    window = Window.around(centre, (20, 40), shift, degrees, zoom)
    window = window.mirrored(torch.tensor([False, True, False, True]))
    index = torch.tensor([2, 0, 1, 2])
    read = window.sample_of(planes, index, (1, 0))
    whole = window.sample(planes[index].flip(1).float() / 255)
    torch.testing.assert_close(read, whole, atol=1e-5, rtol=0)
    # As it is: pixel (10, 20) of the crop is the centre.
    assert torch.allclose(read[0, :, 10, 20], planes[2, [1, 0], 32, 30] / 255, atol=1e-5)
    assert (read[2] == 0).any()


def test_a_turned_window_turns_what_it_shows():
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 20, 30] = 1  # 10 px to the right of the middle
    window = Window.around(
        torch.tensor([[20.0, 20.0]]),
        (41, 41),
        torch.zeros(1, 2),
        torch.tensor([90.0]),
        torch.ones(1),
    )
    row, column = np.argwhere(window.sample(image)[0, 0].numpy() > 0.5)[0]
    assert (row, column) == (30, 20)


def test_rim_lies_around_the_border_of_the_overlap():
    overlap = torch.zeros(1, 1, 20, 20)
    overlap[..., 6:14, 5:15] = 1
    band = rim(overlap)[0, 0]
    assert band[6, 10] == 1
    assert band[13, 5] == 1
    assert band[10, 10] == 0
    assert band[2, 10] == 0
    assert rim(torch.zeros(1, 1, 8, 8)).sum() == 0


def test_a_split_without_what_is_needed_is_refused(everything):
    overlapping = [joint for joint in everything if joint.image.stem == "a"]
    with pytest.raises(InputError, match="no joint without overlap"):
        SyntheticPairs(overlapping)
    with pytest.raises(InputError, match="no overlap that another visit"):
        VisitPairs([], everything)
