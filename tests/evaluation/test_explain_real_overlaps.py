"""benchmarks/explain_real_overlaps.py, where the answer is known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the regression is trained by torch (blsgan[train])")

from blsgan.evaluation.baselines import equal_split, harmonic

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "explain_real_overlaps.py"


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.exists():
        pytest.skip("an installed package has no benchmarks")
    spec = importlib.util.spec_from_file_location("explain_real_overlaps", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    module.PARTS, module.DRAWS, module.MEMBERS = (0.125, 1.0), 1, 1  # seconds instead of minutes
    yield module
    del sys.modules[spec.name]


def comparisons(script, count, seed):
    """k of the truth hangs on the first statistic; the network's tissue is 0.5 for every image."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        statistics = random.normal(size=24).astype(np.float32)
        tissue = 0.7 + 0.2 * np.clip(statistics[0], -2, 2)
        attenuation, share = random.uniform((0.8, 0.2), (2, 0.8), (80, 2)).astype(np.float32).T
        truth = -np.expm1(-share * (attenuation + tissue)).astype(np.float32)
        found.append(
            script.Comparison(
                f"joint{index}",
                f"joint{index}/a",
                index % 2,
                attenuation,
                share,
                truth,
                np.zeros(80, np.float32),
                0.5,
                statistics,
            )
        )
    return found


def test_a_k_that_statistics_tell_is_found(script):
    validation, training = comparisons(script, 24, 0), comparisons(script, 160, 1)
    figures = script.explain(validation, training)["psnr_db"]
    best = figures["best k of each comparison"]["mean"]
    parts = figures["k regressed from statistics"]
    regressed = parts["1 of the training joints"]["mean"]
    assert figures["own k"]["mean"] + 6 < regressed < best
    assert parts["0.125 of the training joints"]["mean"] < regressed
    assert regressed > figures["mean of own and regressed k"]["mean"] > figures["own k"]["mean"]


def test_a_k_that_nothing_tells_is_not_found(script):
    random = np.random.default_rng(2)
    validation, training = comparisons(script, 24, 0), comparisons(script, 160, 1)
    told = script.explain(validation, training)["psnr_db"]
    told = told["k regressed from statistics"]["1 of the training joints"]["mean"]
    for c in (*validation, *training):
        c.statistics = random.normal(size=24).astype(np.float32)
    figures = script.explain(validation, training)["psnr_db"]
    assert figures["k regressed from statistics"]["1 of the training joints"]["mean"] < told - 6


def test_layers_come_back_from_shares_and_k(script, phantom):
    image, masks = phantom.image, phantom.masks
    overlap = masks[0] & masks[1]
    layers = equal_split(image, masks, 0.5)
    attenuation, tissue = script.attenuation_of(image[overlap]), float(-np.log(0.5))
    for bone in (0, 1):
        layer = layers[bone][overlap]
        share = script.attenuation_of(layer) / (attenuation + tissue)
        c = script.Comparison(
            "j",
            "j/a",
            bone,
            attenuation,
            share,
            layer,
            harmonic(image, masks)[bone][overlap],
            tissue,
            np.zeros(24),
        )
        np.testing.assert_allclose(c.layer(tissue), layer, atol=1e-5)


def test_statistics_are_numbers(script, phantom):
    found = script.statistics_of(phantom.image, phantom.masks)
    assert found.shape == (24,)
    assert np.isfinite(found).all()
