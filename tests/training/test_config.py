"""Presets are checked key by key, before anything starts."""

import pytest

from blsgan.errors import UsageError
from blsgan.training.config import load_config, preset_names


def test_every_shipped_preset_loads_and_survives_a_round_trip(tmp_path):
    assert "lite" in preset_names()
    for name in preset_names():
        config = load_config(name)
        copy = tmp_path / "copy.yaml"
        copy.write_text(config.dump())
        assert load_config(copy) == config


def test_changes_reach_nested_keys_and_keep_the_others():
    changed = load_config("fine-tune", ["optimiser.learning_rate=1e-3", "steps=7"])
    assert changed.optimiser.learning_rate == 1e-3
    assert changed.steps == 7
    assert changed.optimiser.betas == load_config("fine-tune").optimiser.betas


def test_whole_images_are_dealt_in_sequence():
    with pytest.raises(UsageError, match="key 'draws' is step; whole images are dealt"):
        load_config("paper", ["draws=step"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("optimiser.learnig_rate=1", "optimiser.learnig_rate"),
        ("nonsense=1", "known keys there: task, name, seed, steps"),
        ("steps=0", "steps"),
        ("steps=many", "'many'"),
        ("optimiser.ema_decay=1.5", "optimiser.ema_decay"),
        ("data.crop=[30, 64]", "multiples of 16"),
        ("data.soft_tissue_range=[0.6, 0.1]", "soft_tissue_range is 0.6 to 0.1"),
        ("data.soft_tissue_range=[0.1, 1]", "data.soft_tissue_range"),
        ("data.rim_taper=2", "data.rim_taper"),
        ("name=../escape", "name"),
        ("steps.deeper=1", "no keys below"),
        ("steps", "key=value"),
        ("steps=[1", "not YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named(change, expected):
    with pytest.raises(UsageError) as caught:
        load_config("fine-tune", [change])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_presets(tmp_path):
    with pytest.raises(UsageError, match="neither one of"):
        load_config(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(UsageError, match="not a YAML file"):
        load_config(bad)
    bad.write_text("- 1\n- 2\n")
    with pytest.raises(UsageError, match="not a preset"):
        load_config(bad)


def test_a_change_that_every_stage_overrules_is_refused():
    with pytest.raises(UsageError, match=r"stages\.0\.optimiser\.learning_rate"):
        load_config("paper", ["optimiser.learning_rate=1e-4"])
    assert load_config("lite-gan", ["data.validation=8"]).stages[1].data.validation == 8


def test_stages_share_what_is_drawn_once():
    with pytest.raises(UsageError, match="differs between stages"):
        load_config("lite-gan", ["stages.1.data.validation=8"])


def test_a_supervisor_of_no_step_is_none():
    assert load_config("lite-gan").has_supervisor()
    assert not load_config("lite-gan", ["stages.1.steps=0"]).has_supervisor()
