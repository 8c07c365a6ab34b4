"""A run small enough for a test: a few channels, a few steps, joints that are phantoms."""

import pytest

TINY = (
    "steps=6", "validate_every=3", "checkpoint_every=2", "precision=float32",
    "model.configuration.widths=[4, 6, 6, 8]", "model.configuration.blocks=[1, 1, 1, 1]",
    "data.synthetic=3", "data.visits=2", "data.validation=6", "data.crop=[32, 64]",
    "optimiser.warm_up_steps=2",
)


@pytest.fixture(scope="session")
def tiny_changes():
    """``--set`` values of a tiny run."""
    return TINY


@pytest.fixture(scope="session")
def tiny():
    """The configuration of a tiny run."""
    from blsgan.training.config import load_config

    return load_config("lite", TINY)
