"""A small network of the default architecture, far from its start, exported once for all tests."""

from __future__ import annotations

import pytest

SMALL = {"widths": [8, 8, 16, 16], "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory):
    """``small.safetensors``: a network whose answers depend on everything it sees."""
    torch = pytest.importorskip("torch", reason="exporting needs torch")
    from blsgan.models import build_generator
    from blsgan.models.weights import safetensors_bytes

    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_generator("lite", SMALL)
        with torch.no_grad():
            generator.share_head.weight.normal_(std=0.15)
            for parameter in generator.k_head[-1].parameters():
                parameter.normal_(std=0.05)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    path.write_bytes(safetensors_bytes(generator))
    return path


@pytest.fixture(scope="session")
def exported(small_weights, tmp_path_factory):
    """``small_weights`` as an ONNX model of the whole separation, with free sizes."""
    from blsgan.deploy.export import export

    return export(small_weights, tmp_path_factory.mktemp("exported") / "model.onnx")
