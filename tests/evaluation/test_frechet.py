"""Fréchet distances: the formula, the networks a user gives, and the check of the own features."""

import numpy as np
import pytest

from blsgan.errors import InputError, WeightsError
from blsgan.evaluation import baselines
from blsgan.evaluation.frechet import (
    BONE_CROP_PX,
    INSIDE_PX,
    FeatureRows,
    bone_crop,
    compare_with_real,
    compare_with_truth,
    frechet_distance,
    load_extractor,
    patch_extractor,
    pushed_together,
)
from blsgan.synthesis.phantoms import joint_phantom


def test_one_dimension_by_hand():
    first, second = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [11.0]])
    # Means 1 and 7, variances 2 and 12.
    expected = 36 + 2 + 12 - 2 * np.sqrt(24)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_correlated_normals_by_hand():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((4000, 3))
    base = (base - base.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(base.T))).T
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    # Covariances with one set of axes: the distance is that of the roots of their eigenvalues.
    first = base * [1, 2, 3] @ turn
    second = base * [4, 2, 1] @ turn + [1, 0, 2]
    assert frechet_distance(first, second) == pytest.approx(9 + 0 + 4 + 5, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))


def test_fewer_samples_than_features_is_no_trouble():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((5, 40)), rng.standard_normal((7, 40))
    value = frechet_distance(first, second)
    assert np.isfinite(value)
    assert value > 0
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="no distance"):
        frechet_distance(first[:1], second)


def test_the_distance_is_torchmetrics():
    pytest.importorskip("torchmetrics")
    torch = pytest.importorskip("torch")
    from torchmetrics.image.fid import _compute_fid

    rng = np.random.default_rng(2)
    first = rng.standard_normal((300, 16)) @ rng.standard_normal((16, 16))
    second = rng.standard_normal((200, 16)) @ rng.standard_normal((16, 16)) + 0.3
    means = [torch.from_numpy(sample.mean(axis=0)) for sample in (first, second)]
    covariances = [torch.from_numpy(np.cov(sample.T)) for sample in (first, second)]
    theirs = float(_compute_fid(means[0], covariances[0], means[1], covariances[1]))
    assert frechet_distance(first, second) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("bone", [0, 1])
def test_a_crop_holds_the_bones_end_whatever_lies_beside_it(bone):
    mask = np.zeros((100, 90), bool)
    mask[:60, 30:50] = True
    if bone == 1:
        mask = mask[::-1]
    layer = np.arange(9000, dtype=np.float32).reshape(100, 90) / 9000
    crop = bone_crop(layer, mask, bone)
    assert crop.shape == (BONE_CROP_PX, BONE_CROP_PX)
    end = INSIDE_PX if bone == 0 else BONE_CROP_PX - INSIDE_PX
    filled = crop.any(axis=1)
    assert filled[:end].all() == (bone == 0)
    assert filled[end:].all() == (bone == 1)
    assert crop.any(axis=0).sum() == 20
    row = 59 if bone == 0 else 40
    np.testing.assert_array_equal(
        crop[end - 1 if bone == 0 else end][crop[end - 1 if bone == 0 else end] > 0],
        layer[row, 30:50],
    )


def test_free_bones_are_cut_out_where_an_overlap_would_lie():
    masks = np.zeros((2, 40, 20), bool)
    masks[0, :18, 5:15] = True
    masks[1, 20:, 5:15] = True
    hidden = pushed_together(masks, 6)
    # A gap of two rows: six rows of movement overlap in four.
    np.testing.assert_array_equal(np.flatnonzero(hidden[0].any(axis=1)), [14, 15, 16, 17])
    np.testing.assert_array_equal(np.flatnonzero(hidden[1].any(axis=1)), [20, 21, 22, 23])


def add(sample, extractor, layers, phantom, joint):
    overlaps = np.stack([phantom.overlap] * 2)
    sample.add(extractor(layers, phantom.masks, overlaps), joint)


@pytest.fixture(scope="module")
def phantoms():
    return [joint_phantom(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def checked(phantoms):
    """The check on phantoms, with layers of known quality."""
    extractor = patch_extractor()
    truth, generated = FeatureRows(), {}
    rng = np.random.default_rng(0)

    def keep(name, layers, phantom, joint):
        add(generated.setdefault(name, FeatureRows()), extractor, layers, phantom, joint)

    for index, phantom in enumerate(phantoms):
        joint = f"joint {index}"
        add(truth, extractor, phantom.layers, phantom, joint)
        image, masks = phantom.image, phantom.masks
        image = image * masks.any(axis=0)
        keep("copy", baselines.copy_layers(image, masks), phantom, joint)
        keep("equal", baselines.equal_split(image, masks, phantom.soft_tissue), phantom, joint)
        keep("harmonic", baselines.harmonic(image, masks), phantom, joint)
        noise = rng.standard_normal(phantom.layers.shape)
        for level in (0.01, 0.03, 0.1):
            noisy = np.clip(phantom.layers + level * noise, 0, 1) * masks
            keep(f"noise {level}", noisy, phantom, joint)
    return compare_with_truth(extractor, generated, truth)


def test_nothing_is_nearer_to_the_truth_than_the_truth(checked):
    """The check that the features must pass: no closed form looks more real than real bones."""
    distance = checked["distance"]
    assert checked["nearer_than_truth"] == []
    for method in ("copy", "equal", "harmonic"):
        assert distance[method] > 1.5 * distance["truth"], method
    assert distance["copy"] > distance["equal"]


def test_more_damage_is_farther(checked):
    distance = checked["distance"]
    order = [distance[name] for name in ("truth", "noise 0.01", "noise 0.03", "noise 0.1")]
    assert order == sorted(order)
    assert order[-1] > 5 * order[0]


def test_features_that_cannot_tell_are_told_on():
    """A method at the middle of both halves is nearer to each than they are to one another."""
    rng = np.random.default_rng(3)
    joints = [str(i) for i in range(40)]
    far = FeatureRows()
    for joint in joints:
        far.add([rng.standard_normal((20, 4))], joint)
    sides = dict(zip(far.joints, far.half(), strict=True))
    truth, middle = FeatureRows(), FeatureRows()
    for joint, rows in zip(joints, far.rows, strict=True):
        truth.add([rows + (3 if sides[joint] else -3)], joint)
        middle.add([rows], joint)
    found = compare_with_truth(patch_extractor(), {"middle": middle}, truth)
    assert found["nearer_than_truth"] == ["middle"]


def test_too_few_bones_give_no_distance():
    extractor = patch_extractor()
    one = FeatureRows()
    one.add([np.ones((3, 64))], "a")
    assert compare_with_truth(extractor, {"m": one}, one) is None
    assert compare_with_real(extractor, {"m": one}, one) is None


def write_features(path, channels=6, size="H", inputs=1):
    """An ONNX network: a 3x3 convolution, averaged over the picture."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((channels, 3, 3, 3)).astype("f4"), "w")
    ports = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["B", 3, size, size])
        for i in range(inputs)
    ]
    nodes = [
        helper.make_node("Conv", ["x0", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", channels, 1, 1])
    graph = helper.make_graph(nodes, "features", ports, [out], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )


@pytest.mark.parametrize("size", ["H", 96])
def test_an_onnx_network_of_the_user(tmp_path, phantom, size):
    path = tmp_path / "mine.onnx"
    write_features(path, size=size)
    extractor = load_extractor(path)
    assert extractor.name == "Fréchet distance, mine"
    assert "FID" not in extractor.name
    upper, lower = extractor(phantom.layers, phantom.masks, np.stack([phantom.overlap] * 2))
    assert upper.shape == lower.shape == (1, 6)
    assert upper.dtype == np.float64
    assert not np.allclose(upper, lower)
    assert extractor.description["features"] == 6
    assert len(extractor.description["sha256"]) == 64


def test_only_2048_features_are_called_fid(tmp_path):
    path = tmp_path / "inception.onnx"
    write_features(path, channels=2048)
    assert load_extractor(path, inception=True).name == "FID"
    assert load_extractor(path).name == "Fréchet distance, inception"
    write_features(path, channels=64)
    with pytest.raises(InputError, match="has 64 features where the FID's Inception"):
        load_extractor(path, inception=True)


@pytest.mark.parametrize("name", ["a.onnx", "a.pt"])
def test_files_that_are_no_network(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match="does not exist"):
        load_extractor(path)
    path.write_bytes(b"no network at all")
    if name.endswith(".pt"):
        pytest.importorskip("torch")
    with pytest.raises((InputError, WeightsError), match=str(path)):
        load_extractor(path)


def test_a_network_of_another_kind_is_refused(tmp_path, network):
    with pytest.raises(InputError, match="no feature network"):
        load_extractor(network)


def test_torchscript_returns_features_where_it_can(tmp_path, phantom):
    torch = pytest.importorskip("torch")

    class Detector(torch.nn.Module):
        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            if return_features:
                return x.mean(dim=(2, 3)).repeat(1, 683)[:, :2048]
            return x.sum()

    path = tmp_path / "inception.pt"
    torch.jit.script(Detector()).save(path)
    extractor = load_extractor(path, inception=True)
    assert extractor.name == "FID"
    upper, _ = extractor(phantom.layers, phantom.masks, np.stack([phantom.overlap] * 2))
    mean = np.rint(bone_crop(phantom.layers[0], phantom.masks[0], 0) * 255).mean()
    np.testing.assert_allclose(upper, np.full((1, 2048), mean), rtol=1e-5)
