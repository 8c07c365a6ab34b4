"""Cross-validation: every joint is judged once, by weights of a run that held it out."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from blsgan.data.dataset import load_root
from blsgan.data.layout import joints_of
from blsgan.data.splits import is_held_out, select, split_for_training
from blsgan.errors import UsageError
from blsgan.training.config import load_config

PATH = Path(__file__).parents[2] / "benchmarks" / "cross_validate.py"
TINY = (
    "model.configuration={widths: [4, 4, 4, 4], blocks: [1, 1, 1, 1]}",
    "data.visits=0",
    "data.synthetic=2",
    "data.validation=2",
    "precision=float32",
    "checkpoint_every=1",
)


@pytest.fixture(scope="module")
def cross_validate():
    spec = importlib.util.spec_from_file_location("cross_validate", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_joint_is_in_one_fold_and_folds_are_alike():
    names = [f"{i:05d}_R_{j}" for i in range(1000) for j in (2, 5)]
    inside = [[is_held_out(name, f"{k}/4") for name in names] for k in range(1, 5)]
    assert all(sum(folds) == 1 for folds in zip(*inside, strict=True))
    assert all(450 < sum(fold) < 550 for fold in inside)
    # A changed hash would have networks judged on joints that they were trained on.
    assert [is_held_out(name, "1/4") for name in names[:5]] == [False, False, True, False, True]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/1", "1/101", "4", "1/4/2", "-1/4", "²/4", ""])
def test_what_is_no_split_is_said(text):
    with pytest.raises(UsageError, match="K/N"):
        select([], text)
    with pytest.raises(UsageError, match="held_out"):
        load_config("lite", [f"held_out={text}"])


def test_a_run_never_sees_what_it_holds_out(dataset):
    images = load_root(dataset)
    training, validation = split_for_training(images, "1/2")
    assert not set(joints_of(training)) & set(joints_of(validation))
    assert validation == select(images, "1/2")
    assert training == select(images, "2/2")


def test_all_joints_are_judged_and_a_second_run_does_nothing(cross_validate, dataset, tmp_path):
    command = ["--data", str(dataset), "-o", str(tmp_path), "--folds", "2", "--steps", "2"]
    for change in TINY:
        command += ["--set", change]
    done = CliRunner().invoke(cross_validate.main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    judged = {}
    for fold in (1, 2):
        folder = tmp_path / f"fold-{fold}"
        records = json.loads((folder / "records.json").read_text())
        judged[fold] = {record["joint"] for record in records}
        assert all(is_held_out(joint, f"{fold}/2") for joint in judged[fold])
        card = json.loads((folder / "weights" / f"fold-{fold}.json").read_text())
        held_out = joints_of(select(load_root(dataset), f"{fold}/2"))
        assert card["trained"]["validation_joints"] == len(held_out)
    assert not judged[1] & judged[2]
    assert judged[1] | judged[2] == set(joints_of(load_root(dataset)))
    with (tmp_path / "cross_validation.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    ours = [row for row in rows if row["method"] == cross_validate.MODEL]
    assert {row["bone"] for row in ours} == {"upper", "lower"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("fold-*/weights/*")}
    again = CliRunner().invoke(cross_validate.main, command, catch_exceptions=False)
    assert again.exit_code == 0, again.output
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("fold-*/weights/*")}
    other = CliRunner().invoke(cross_validate.main, [*command, "--set", "seed=7"])
    assert isinstance(other.exception, UsageError)
    assert "other settings" in str(other.exception)
