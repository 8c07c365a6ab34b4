"""The NumPy side of the kernels: the same bits as the torch ops, checked arguments, no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from blsgan.ops import K_MAX, LAW_MAX, LAW_MIN, native


def joint(batch=2, layers=2, height=33, width=47, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.random((batch, layers, height, width)) > 0.4
    return {
        "layers": rng.random((batch, layers, height, width)).astype(dtype),
        "share_logits": rng.normal(size=(batch, layers, height, width)).astype(dtype),
        "image": rng.random((batch, 1, height, width)).astype(dtype),
        "masks": masks,
        "soft_tissue": rng.uniform(0, K_MAX, batch).astype(dtype),
    }


def compose(j, law=0.0):
    return native.compose_layers(j["layers"], j["masks"], j["soft_tissue"], law)


def split(j, law=0.0):
    return native.split_attenuation(
        j["share_logits"], j["image"], j["masks"], j["soft_tissue"], law
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mask_dtype", [np.bool_, np.uint8])
@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("law", [0.0, 7.4])
@pytest.mark.parametrize("as_map", [False, True])
def test_the_same_bits_as_the_torch_ops(dtype, mask_dtype, layers, law, as_map):
    torch = pytest.importorskip("torch")
    from blsgan import ops

    # 700 x 900 is large enough for threads.
    for size in ((33, 47), (700, 900)):
        j = joint(1, layers, *size, dtype)
        j["masks"] = j["masks"].astype(mask_dtype)
        if as_map:
            j["soft_tissue"] = K_MAX * j["image"][:, :, ::-1]
        t = {name: torch.from_numpy(array.copy()) for name, array in j.items()}
        expected = ops.compose_layers(t["layers"], t["masks"], t["soft_tissue"], law)
        np.testing.assert_array_equal(compose(j, law), expected.numpy())
        expected = ops.split_attenuation(
            t["share_logits"], t["image"], t["masks"], t["soft_tissue"], law
        )
        np.testing.assert_array_equal(split(j, law), expected.numpy())


def test_values_by_hand():
    layers = np.array([0.5, 0.2], np.float64).reshape(1, 2, 1, 1)
    masks = np.ones((1, 2, 1, 1), bool)
    k = np.array([0.25])
    composed = native.compose_layers(layers, masks, k)
    assert composed[0, 0, 0, 0] == pytest.approx(1 - 0.5 * 0.8 / 0.75)
    halves = native.split_attenuation(np.zeros_like(layers), composed, masks, k)
    assert halves[0, 0, 0, 0] == pytest.approx(1 - np.sqrt(0.4))
    assert native.compose_layers(halves, masks, k)[0, 0, 0, 0] == pytest.approx(
        composed[0, 0, 0, 0]
    )


def test_empty_and_not_contiguous():
    j = joint(0)
    assert compose(j).shape == (0, 1, 33, 47)
    assert split(j).shape == (0, 2, 33, 47)
    j = joint()
    flipped = {name: array[..., ::-1] if array.ndim == 4 else array for name, array in j.items()}
    np.testing.assert_array_equal(compose(flipped), compose(j)[..., ::-1])


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("layers", np.zeros((2, 2, 33, 47), np.int32), TypeError, "layers must be float32"),
        ("layers", np.zeros((2, 2, 33, 46), np.float32), ValueError, r"\[2, 2, 33, 47\]"),
        ("layers", np.zeros((33, 47), np.float32), ValueError, "layers must have the shape"),
        ("masks", np.zeros((2, 2, 33, 47), np.float32), TypeError, "masks must be bool or uint8"),
        ("masks", np.ones((2, 1, 33, 47), bool), ValueError, "N >= 2"),
        ("masks", np.ones((2, 2, 33), bool), ValueError, "N >= 2"),
        ("soft_tissue", np.zeros(3, np.float32), ValueError, "soft_tissue must have the shape"),
        (
            "soft_tissue",
            np.zeros((2, 2, 33, 47), np.float32),
            ValueError,
            r"soft_tissue must have the shape \[2, 1, 33, 47\]",
        ),
        ("soft_tissue", np.zeros(2, np.float16), TypeError, "soft_tissue must be float32"),
        ("soft_tissue", "text", TypeError, "soft_tissue must be float32"),
    ],
)
def test_bad_arguments(name, value, error, message):
    j = joint()
    j[name] = value
    with pytest.raises(error, match=message):
        compose(j)


def test_bad_law():
    for function in (compose, split):
        with pytest.raises(ValueError, match=r"law must be 0 or between 1 and 20, got 0\.5"):
            function(joint(), 0.5)


def test_bad_image():
    j = joint()
    j["image"] = j["image"][:, 0]
    with pytest.raises(ValueError, match="image must have the shape"):
        split(j)


def test_the_compiled_module_checks_too():
    from blsgan import _native

    j = joint()
    with pytest.raises(TypeError):
        _native.compose_layers(j["layers"].astype(np.float16), j["masks"], j["soft_tissue"])
    with pytest.raises(ValueError, match="C-contiguous"):
        _native.compose_layers(j["layers"][..., ::-1], j["masks"], j["soft_tissue"])
    with pytest.raises(ValueError, match="shape"):
        _native.split_attenuation(j["share_logits"], j["image"], j["masks"], np.zeros(9))


def test_build_info_and_no_torch():
    info = native.build_info()
    assert info["cpu_dispatch"]
    assert info["soft_tissue_max"] == K_MAX
    assert (info["law_min"], info["law_max"]) == (LAW_MIN, LAW_MAX)
    code = "import sys, blsgan.ops.native; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
