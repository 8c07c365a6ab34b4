"""The ablation: rows that are what they say, of one length, resumable, and compared."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from blsgan.cli.ablate import _DEFAULT_STEPS
from blsgan.cli.ablate import command as ablate
from blsgan.data.dataset import load_root
from blsgan.data.packed import pack
from blsgan.errors import InputError, UsageError
from blsgan.evaluation import ablation
from blsgan.evaluation.ablation import (
    DEFAULT_STEPS,
    PRESET,
    choose,
    common_changes,
    rows,
    run_study,
)
from blsgan.training.config import differences, load_config, stages_of
from blsgan.training.separation import first_generator
from blsgan.training.sources import load_sources


def config_of(row, steps=60):
    return load_config(PRESET, (*common_changes(steps), *row.changes))


def unused(data):
    raise AssertionError("no row counts epochs")


def test_the_command_shows_the_studys_default():
    assert _DEFAULT_STEPS == DEFAULT_STEPS


@pytest.mark.parametrize("steps", [3, 60, 240])
def test_every_row_has_the_same_number_of_steps(steps):
    for row in rows(steps):
        config = config_of(row, steps)
        assert stages_of(config, unused)[-1].last == steps, row.name


def test_every_row_s_network_can_be_built():
    for row in rows(60):
        first_generator(config_of(row))


def test_every_row_changes_what_it_says_and_nothing_else():
    complete, *others = rows(60)
    assert complete.changes == ()
    reference = config_of(complete).model_dump(mode="json")
    seen = set()
    for row in others:
        own = config_of(row).model_dump(mode="json")
        changed = {*differences(reference, own), *differences(own, reference)}
        assert changed, row.name
        named = {change.split("=")[0] for change in row.changes}
        top = {key.split(".")[0] for key in named}
        # What a row sets for the run, its stages inherit.
        assert {key.split(".")[0] for key in changed} <= top | {"stages"}, row.name
        seen.add(tuple(row.changes))
    assert len(seen) == len(others)


def test_rows_that_drop_a_part_really_drop_it():
    configs = {row.name: config_of(row) for row in rows(60)}
    assert configs["complete"].has_supervisor()
    assert not configs["no-supervisor"].has_supervisor()
    assert configs["exponential-law"].model.configuration["law"] == 7
    assert configs["no-zone"].model.configuration["reach_px"] == 0
    assert configs["free-head"].model.configuration["head"] == "free"
    assert [s.name for s in stages_of(configs["no-pre-training"], unused)] == ["supervised"]
    assert all(stage.data.visits == 0 for stage in configs["no-visits"].stages)
    assert all(stage.data.redrawn_share == 0 for stage in configs["masks-as-drawn"].stages)
    assert configs["no-real-for-supervisor"].has_supervisor()
    assert configs["no-real-for-supervisor"].stages[1].data.real == 0
    assert configs["transunet"].model.architecture == "transunet"
    assert configs["unet"].model.configuration == {"soft_tissue": "reconstructor"}


def test_every_prior_has_a_row():
    configs = {row.name: config_of(row) for row in rows(60)}
    for name, switch in (
        ("one-k", "soft_tissue_map"),
        ("no-continuation", "continued"),
        ("soft-tissue-unseen", "soft_tissue_seen"),
    ):
        assert configs[name].model.configuration[switch] is False
        assert switch not in configs["complete"].model.configuration
    assert {stage.data.composites for stage in configs["composites"].stages} == {2}
    assert {stage.data.composites for stage in configs["complete"].stages} == {0}


def test_rows_share_the_draws_of_every_source_they_have_in_common(dataset):
    """In a step, a source gives each row the same pairs, whatever other sources the row has."""
    drawn = {}
    step = 50  # of the second stage: all three sources
    for number, row in enumerate(rows(60)):
        if row.name not in (
            "complete",
            "no-visits",
            "no-supervisor",
            "no-real-for-supervisor",
            "no-pre-training",
            "composites",
        ):
            continue
        config = config_of(row)
        sources = load_sources(config, load_root(dataset), None, torch.device("cpu"))
        stage = stages_of(config, unused)[-1]
        # Another stream for each: by this step rows without a source have drawn fewer numbers.
        batch, data = sources.draw(stage, step, torch.Generator().manual_seed(number)), stage.data
        parts = batch.image.split([data.synthetic, data.composites, data.visits, data.real])
        drawn[row.name] = [parts[0], *parts[2:]]
    reference = drawn.pop("complete")
    assert [len(part) for part in reference] == [1, 5, 2]
    for name, parts in drawn.items():
        for source, (mine, theirs) in enumerate(zip(reference, parts, strict=True)):
            if len(theirs):
                assert torch.equal(mine, theirs), (name, source)


def test_rows_are_chosen_by_name_beside_the_complete_method():
    chosen = choose(["unet", "no-zone"], 60)
    assert [row.name for row in chosen] == ["complete", "no-zone", "unet"]
    assert choose([], 60) == rows(60)
    with pytest.raises(UsageError, match="'k-one' is no row of the ablation; choose from complete"):
        choose(["k-one"], 60)


def test_the_rows_can_be_listed_without_anything_else():
    result = CliRunner().invoke(ablate, ["--list"])
    assert result.exit_code == 0, result.output
    for row in rows(DEFAULT_STEPS):
        assert f"{row.name}: {row.question}" in result.stdout
        for change in row.changes:
            assert f"--set {change}" in result.stdout


@pytest.mark.parametrize("arguments", [(), ("--data", "x"), ("-o", "x")])
def test_what_is_missing_is_said(arguments):
    result = CliRunner().invoke(ablate, arguments)
    assert isinstance(result.exception, UsageError)
    assert "is missing" in str(result.exception)


def test_what_cannot_be_done_is_said_before_visits_are_registered(dataset, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("registered already")

    monkeypatch.setattr(ablation, "cached_visit_truths", refuse)
    with pytest.raises(UsageError, match="not a torch device"):
        run_study(dataset, tmp_path / "study", device="gpu7")
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    next(root.rglob("b_mask_lower.bmp")).unlink()
    with pytest.raises(InputError, match="1 of 24 files that its lists name are missing"):
        run_study(root, tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_study_is_run_once_row_by_row(dataset, tmp_path, monkeypatch):
    small = (
        *common_changes(3),
        "model.configuration.widths=[4, 6, 6, 8]",
        "model.configuration.blocks=[1, 1, 1, 1]",
        "supervisor.widths=[4, 8]",
        "data.crop=[32, 64]",
        "data.validation=4",
        "precision=float32",
    )
    monkeypatch.setattr(ablation, "common_changes", lambda steps: small)
    begun = []

    def started(row, index, count):
        begun.append(row.name)
        if stop_at == row.name:
            raise KeyboardInterrupt

    stop_at = "free-head"
    output = tmp_path / "study"
    names = ["free-head"]
    with pytest.raises(KeyboardInterrupt):
        run_study(dataset, output, names=names, steps=3, started=started)
    assert (output / "rows" / "complete" / "evaluation" / "evaluation.json").is_file()
    assert not (output / "rows" / "free-head").exists()

    trained = []
    train = ablation.__dict__["_train"]

    def counting(root, folder, row, *arguments):
        if not (folder / "weights").is_dir():
            trained.append(row.name)
        return train(root, folder, row, *arguments)

    monkeypatch.setattr(ablation, "_train", counting)
    stop_at = None
    packed = tmp_path / "joints.blsgan"  # what was found in the folder holds for the packed file
    pack(load_root(dataset), packed)
    study = run_study(packed, output, names=names, steps=3, started=started)
    assert trained == ["free-head"]
    assert begun == ["complete", "free-head", "complete", "free-head"]
    assert list(study.comparison.differences) == ["free-head"]
    assert study.parameters["complete"] == study.parameters["free-head"]

    written = study.write(output)
    assert [path.name for path in written] == ["ablation.csv", "ablation.md", "ablation.json"]
    report = json.loads(written[-1].read_text())
    free = report["comparison"]["models"]["free-head"]
    assert free["backend"] == "torch, window around the overlap"
    assert "free layers" in written[1].read_text()

    again = run_study(dataset, output, names=names, steps=3)
    assert trained == ["free-head"]
    assert again.comparison.rows == study.comparison.rows
    with pytest.raises(UsageError, match="with other settings"):
        run_study(dataset, output, names=names, steps=3, seed=1)
