"""`blsgan demo`: a phantom through the real path, with honest figures."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from blsgan.cli import main
from blsgan.evaluation.metrics import psnr_db, region_mse
from blsgan.synthesis.phantoms import joint_phantom


def test_pictures_and_figures(network, tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "-o", str(out), "--seed", "4", "--weights", str(network)]) == 0
    stdout = capsys.readouterr().out
    assert str(out / "phantom_panel.png") in stdout
    files = {path.name for path in out.iterdir()}
    assert {"phantom.png", "phantom_mask_upper.png", "phantom_upper.png", "phantom.json"} <= files
    phantom = joint_phantom(4)
    record = json.loads((out / "phantom.json").read_text())
    assert record["overlap"]["area_px"] == int(phantom.overlap.sum())
    assert record["pixel_spacing_mm"]["row"] == pytest.approx(0.1)

    # The printed figures are those of the files.
    printed = [float(text) for text in re.search(r"blsgan +([\d.]+) +([\d.]+)", stdout).groups()]
    for bone, figure in zip(("upper", "lower"), printed, strict=True):
        layer = np.asarray(Image.open(out / f"phantom_{bone}.png")) / 65535
        index = ("upper", "lower").index(bone)
        error = region_mse(layer, phantom.layers[index], phantom.overlap)
        assert figure == pytest.approx(psnr_db(error), abs=0.06)
    assert "equal split" in stdout


def test_it_runs_again(network, tmp_path):
    for _ in range(2):
        assert main(["demo", "-o", str(tmp_path), "--weights", str(network)]) == 0


def test_folder_that_cannot_be(network, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "demo"
    assert main(["demo", "-o", str(out), "--weights", str(network)]) == 1
    assert "part of the path is a file" in capsys.readouterr().err
