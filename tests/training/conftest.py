"""A run small enough for a test: a few channels, a few steps, joints that are phantoms."""

import pytest

TINY = (
    "steps=6",
    "validate_every=3",
    "checkpoint_every=2",
    "precision=float32",
    "model.configuration.widths=[4, 6, 6, 8]",
    "model.configuration.blocks=[1, 1, 1, 1]",
    "data.synthetic=3",
    "data.visits=2",
    "data.validation=6",
    "data.crop=[32, 64]",
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

    return load_config("fine-tune", TINY)


STAGED = (
    "model.architecture=lite",
    "model.configuration={widths: [4, 4, 4, 4], blocks: [1, 1, 1, 1]}",
    "model.configuration.head=free",
    "supervisor.widths=[4, 4]",
    "precision=float32",
    "data.size=64",
    "data.validation=3",
    "validate_every=2",
    "checkpoint_every=1",
    "stages.0.steps=3",
    "stages.0.data.synthetic=2",
    "stages.1.steps=3",
    "stages.1.data.synthetic=2",
    "stages.1.data.real=2",
    "optimiser.clip_norm=1.0",
    "stages.1.optimiser.learning_rate=0.001",
    "optimiser.supervisor_learning_rate=0.001",
)


@pytest.fixture(scope="session")
def staged_changes():
    """``--set`` values that make the preset ``paper`` a tiny run of two stages."""
    return STAGED


@pytest.fixture(scope="session")
def staged():
    """The configuration of that run."""
    from blsgan.training.config import load_config

    return load_config("paper", STAGED)
