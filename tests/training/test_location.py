"""The locator is trained by the same loop, on hands that the package draws."""

import csv

import cv2
import numpy as np
import pytest
import torch

from blsgan.anatomy import LANDMARKS
from blsgan.cli import main
from blsgan.data.hands import read_hands
from blsgan.data.splits import is_validation
from blsgan.errors import InputError
from blsgan.joint.geometry import HEATMAP_PX
from blsgan.synthesis.hand import marked_hand_phantom
from blsgan.tasks.joints import Locator, decode_heatmaps
from blsgan.training.config import load_config
from blsgan.training.hands import ELSEWHERE, HandViews
from blsgan.training.location import location_loss
from blsgan.training.run import train


@pytest.fixture(scope="module")
def hands(tmp_path_factory):
    """A folder of six phantoms with landmarks, one of them for validation."""
    root = tmp_path_factory.mktemp("hands")
    names = [f"hand{n}" for n in range(40)]
    kept = [name for name in names if not is_validation(name)][:5]
    kept += [name for name in names if is_validation(name)][:1]
    rows = []
    for seed, name in enumerate(kept):
        image, points = marked_hand_phantom(seed, 256)
        cv2.imwrite(str(root / f"{name}.png"), np.rint(255 * image).astype(np.uint8))
        row = {"file": f"{name}.png"}
        for landmark, (x, y) in zip(LANDMARKS, points, strict=True):
            if np.isfinite(x):
                row |= {f"{landmark}_x_px": x, f"{landmark}_y_px": y}
        rows.append(row)
    with (root / "landmarks.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_a_run_writes_weights_that_locate(hands, tmp_path):
    changes = [
        "steps=2",
        "data.batch=2",
        "model.widths=[4,8]",
        "model.blocks=[0,1]",
        "precision=float32",
    ]
    card = train(hands, tmp_path / "run", load_config("locator", changes))
    for backend in ("onnx", "torch"):
        locator = Locator.from_pretrained(card, backend, threads=1)
        (logits,) = locator.backend.run(np.zeros((1, 1, 192, 192), np.float32))
        assert logits.shape == (1, len(LANDMARKS), HEATMAP_PX, HEATMAP_PX)


def test_the_command_takes_a_folder_of_hands(hands, tmp_path, capsys):
    args = ["train", "--preset", "locator", "-o", str(tmp_path / "run")]
    assert main([*args, "--data", str(hands), "--dry-run"]) == 0
    assert "task: location" in capsys.readouterr().out
    assert main([*args, "--data", str(tmp_path)]) == 1


def test_views_move_their_landmarks_with_them(hands):
    views = HandViews(read_hands(hands), phantom_share=0, negative_share=0)
    batch = views.draw(4, (1, 2))
    again = views.draw(4, (1, 2))
    assert torch.equal(batch.image, again.image)
    known = torch.isfinite(batch.points)
    assert torch.equal(batch.points[known], again.points[known])
    straight = views.all()
    mcp = straight.points[:, :5]
    assert ((mcp > 0) & (mcp < HEATMAP_PX)).all()
    # Bone is bright where a metacarpal's head is said to be.
    places = (2 * mcp + 0.5).round().long()
    for image, hand in zip(straight.image[:, 0], places, strict=True):
        assert image[hand[:, 1], hand[:, 0]].mean() > image.mean() + 0.1


def test_negatives_have_no_landmark(hands):
    views = HandViews(read_hands(hands), phantom_share=0, negative_share=1)
    assert (views.draw(6, (3,)).points == ELSEWHERE).all()


def test_the_loss_is_least_at_the_truth():
    axis = torch.arange(HEATMAP_PX, dtype=torch.float32)
    points = torch.tensor([[[30.0, 60.0], [ELSEWHERE, ELSEWHERE], [torch.nan, torch.nan]]])

    def logits(x: float, y: float) -> torch.Tensor:
        peak = 8 - 0.5 * ((axis - x) ** 2 + (axis[:, None] - y) ** 2)
        nothing = torch.full_like(peak, -30.0)
        return torch.stack((peak, nothing, nothing))[None]

    exact, beside = (location_loss(logits(x, 60.0), points) for x in (30.0, 33.0))
    swapped = location_loss(logits(30.0, 60.0).flip(1), points)
    assert exact < beside < swapped
    assert decode_heatmaps(logits(30.0, 60.0)[0].numpy())[0][0] == pytest.approx((30, 60))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,mcp1_x_px,mcp1_y_px\n", "names no hand"),
        ("file,mcp1_x_px,mcp1_y_px\nnone.png,1,2\n", "there is no file"),
        ("file,mcp1_x_px,mcp1_y_px\nlandmarks.csv,one,2\n", "no coordinate of mcp1"),
        ("file,mcp1_x_px,mcp1_y_px\nlandmarks.csv,1,2\n", "fewer than two landmarks"),
    ],
)
def test_tables_that_cannot_be_used_name_the_line(text, words, tmp_path):
    (tmp_path / "landmarks.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_hands(tmp_path)


def test_a_folder_without_a_table_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"landmarks\.csv"):
        read_hands(tmp_path)
