"""Whole images in batches are those of the evaluation protocol, and each has its turn."""

import numpy as np
import pytest
import torch

from blsgan.data.dataset import load_root
from blsgan.data.layout import JointImage, overlap_px, read_joint
from blsgan.errors import InputError
from blsgan.synthesis.overlap import synthesize_overlap
from blsgan.training.images import Deck, WholeImages, protocol_shifts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def joints(dataset):
    return load_root(dataset)


@pytest.fixture(scope="module")
def whole(joints):
    return WholeImages(joints, 256, CPU)


def test_synthetic_images_are_the_protocols(joints, whole):
    """One by one through OpenCV and NumPy, and all at once through the op."""
    arrays = [read_joint(joint) for joint in joints]
    free = [a for a in arrays if overlap_px(a.masks) < 20 and a.background is not None]
    assert whole.synthetic_count == len(free)
    shifts = torch.tensor([[8.0, 7.0], [6.0, 8.0]])
    batch = whole.synthetic(torch.tensor([0, 2]), shifts)
    for row, index in enumerate((0, 2)):
        a = free[index]
        expected = synthesize_overlap(
            a.image,
            a.masks,
            a.background,
            down_px=float(shifts[row, 0]),
            up_px=float(shifts[row, 1]),
        )
        assert expected.overlap.sum() > 50
        assert (batch.masks[row].numpy() == expected.masks).mean() > 0.9999
        same = batch.masks[row].numpy() == expected.masks
        np.testing.assert_allclose(
            batch.layers[row].numpy()[same], expected.layers[same], atol=2e-5
        )
        # The rim differs where it leaves the bones (the op keeps what lies off them at 0).
        error = np.abs(batch.image[row, 0].numpy() - expected.image)
        assert np.median(error[expected.overlap]) < 1e-5
        assert (error > 1e-3).mean() < 0.005
        assert float(batch.soft_tissue[row]) == pytest.approx(expected.soft_tissue, abs=1e-4)
        assert np.array_equal(
            batch.valid[row].numpy().all(axis=0), batch.masks[row].numpy().all(axis=0)
        )


def test_real_overlaps_have_no_truth(whole):
    batch = whole.real(torch.arange(whole.real_count))
    assert (batch.masks.sum(dim=1) > 1).flatten(1).any(dim=1).all()
    assert not batch.valid.any()
    assert torch.isnan(batch.soft_tissue).all()
    assert not batch.image[batch.masks.amax(dim=1, keepdim=True) == 0].any()


def test_another_working_size(joints):
    small = WholeImages(joints, 64, CPU)
    batch = small.synthetic(torch.tensor([1]), torch.tensor([[3.0, 3.0]]))
    assert batch.image.shape == (1, 1, 64, 64)
    assert batch.valid.any()


def test_every_image_has_its_turn_before_any_has_its_second():
    deck = Deck(5, seed=3)
    drawn = torch.cat([deck.draw(3 * step, 3) for step in range(5)])
    for turn in range(3):
        assert sorted(drawn[5 * turn : 5 * turn + 5].tolist()) == list(range(5))
    assert not torch.equal(drawn[:5], drawn[5:10])
    # Any part can be drawn again without what came before it: a resumed run does.
    assert torch.equal(Deck(5, seed=3).draw(6, 7), drawn[6:13])
    assert not torch.equal(Deck(5, seed=4).draw(0, 15), drawn)


def test_shifts_are_the_protocols():
    shifts = protocol_shifts(400, torch.Generator().manual_seed(0))
    assert sorted(shifts.unique().tolist()) == [2, 3, 4, 5, 6, 7, 8]


def test_mixed_sizes_are_one_sentence(tmp_path, joints):
    from PIL import Image

    source = joints[0]
    paths = []
    for path in (source.image, source.upper, source.lower, source.background):
        paths.append(tmp_path / "00001_L_2" / path.name)
        paths[-1].parent.mkdir(exist_ok=True)
        with Image.open(path) as picture:
            picture.crop((0, 0, 128, 128)).save(paths[-1])
    odd = JointImage("00001_L_2", *paths)
    with pytest.raises(InputError, match=r"sizes \[\(128, 128\), \(256, 256\)\] px"):
        WholeImages([*joints, odd], 256, CPU)
