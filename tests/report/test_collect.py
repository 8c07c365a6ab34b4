"""What goes into a report: visits find their joint, figures their unit, doubts their flag."""

import json
import shutil

import pytest

from blsgan.cli import main
from blsgan.errors import InputError
from blsgan.report.collect import ALERT, NOTE, WARNING, Pair, collect, curve, in_order


def pair(baseline, followup, px, mm=None, mismatch=False):
    return Pair((baseline,), (followup,), px, mm, mismatch, 0.9, None, "", (), (None, None))


def keys(*names):
    return [(name,) for name in names]


def test_results_alone_are_a_joint_each(run_folder):
    joints = collect([run_folder])
    assert [joint.label for joint in joints] == [
        "00001_L_2/a", "00001_L_2/b", "00001_L_2/c", "alone/only",
    ]  # fmt: skip
    assert all(len(joint.visits) == 1 and joint.curve is None for joint in joints)
    assert {joint.level for joint in joints} <= {"", NOTE}


def test_a_table_joins_visits_by_folder_and_file(run_folder, tmp_path, write_pairs):
    table = write_pairs(
        tmp_path / "jsn.csv",
        [
            ("00001_L_2", "b.png", "c.png", 5.0, False, ""),
            ("00001_L_2", "a.png", "b.png", 8.0, False, ""),
        ],
    )
    joints = {joint.label: joint for joint in collect([run_folder, table])}
    assert set(joints) == {"00001_L_2", "alone/only"}
    joint = joints["00001_L_2"]
    assert [visit.label for visit in joint.visits] == ["00001_L_2/a", "00001_L_2/b", "00001_L_2/c"]
    assert all(visit.result for visit in joint.visits)
    assert joint.curve.unit == "mm"
    assert joint.curve.values == pytest.approx([0, 0.8, 1.3])
    assert joint.curve.summed == [False, False, True]
    assert joint.curve.disagreement_px is None


def test_a_measurement_joins_visits_by_content(run_folder, tmp_path):
    visits = [run_folder.parent / "in/00001_L_2" / f"{name}.png" for name in "ab"]
    out = tmp_path / "jsn"
    assert main(["jsn", *map(str, visits), "--no-separation", "-o", str(out)]) == 0
    joints = collect([run_folder, out])
    joined = next(joint for joint in joints if joint.pairs)
    assert [visit.result.name for visit in joined.visits] == ["a", "b"]
    assert joined.pairs[0].picture == out / "jsn.png"
    assert joined.curve.unit == "px"
    assert any(flag.text.endswith("narrowing in px only") for flag in joined.flags)


def test_order_is_baseline_first_and_circles_end():
    assert in_order(keys("c", "b", "a"), [pair("a", "b", 1), pair("b", "c", 1)]) == keys(
        "a", "b", "c"
    )
    assert in_order(keys("a", "b"), [pair("a", "b", 1), pair("b", "a", 1)]) == keys("a", "b")


def test_a_curve_prefers_the_measured_pair_and_says_how_pairs_disagree():
    pairs = [pair("a", "b", 1.0), pair("b", "c", 2.0), pair("a", "c", 3.7)]
    found = curve(keys("a", "b", "c"), pairs)
    assert found.values == [0, 1.0, 3.7]
    assert found.summed == [False, False, False]
    assert found.disagreement_px == pytest.approx(0.7)
    assert found.unit == "px"


def test_a_pair_measured_backwards_counts_backwards():
    found = curve(keys("a", "b", "c"), [pair("b", "a", -1.5, -0.15), pair("b", "c", 1.0, 0.1)])
    assert found.values == pytest.approx([0, 0.15, 0.25])
    assert found.unit == "mm"


def test_a_mismatch_carries_nothing():
    found = curve(keys("a", "b", "c"), [pair("a", "b", 9.0, mismatch=True), pair("a", "c", 1.0)])
    assert found.values == [0, None, 1.0]
    assert not curve(keys("a", "b"), [pair("a", "b", 9.0, mismatch=True)]).is_measured


def test_a_pair_that_failed_is_an_alert_without_its_path(tmp_path, write_pairs):
    write_pairs(
        tmp_path / "jsn.csv",
        [("00001_L_2", "a.png", "b.png", None, True, "/home/Doe^John/a.png is damaged")],
    )
    (joint,) = collect([tmp_path])
    (flag,) = joint.flags
    assert flag.level == ALERT
    assert "Doe" not in flag.text


@pytest.mark.parametrize("ending", [".dcm", "", ".1.2.840.7", ".img"])
def test_names_of_dicom_files_never_reach_a_report(tmp_path, write_pairs, ending):
    write_pairs(
        tmp_path / "jsn.csv",
        [("Doe_John", f"DoeJohn1{ending}", f"DoeJohn2{ending}", 1.0, False, "")],
    )
    (joint,) = collect([tmp_path])
    assert joint.label == "joint 1"
    assert [visit.label for visit in joint.visits] == ["visit 1", "visit 2"]


def changed(run_folder, tmp_path, change):
    """The one result of ``alone`` with its record changed."""
    out = tmp_path / "changed"
    shutil.copytree(run_folder / "alone", out)
    record = json.loads((out / "only.json").read_text())
    change(record)
    (out / "only.json").write_text(json.dumps(record))
    (joint,) = collect([out])
    return joint


@pytest.mark.parametrize(
    ("masks", "level", "text"),
    [
        (
            {"source": "predicted", "confidence": {"score": 0.91}},
            WARNING,
            "predicted, not drawn, confidence 0.91",
        ),
        ({"source": "predicted", "doubtful": True}, ALERT, "doubtful: look at them"),
        (
            {"source": "predicted", "doubtful": True, "doubts": ["the outlines are torn"]},
            ALERT,
            "doubtful: the outlines are torn",
        ),
    ],
)
def test_predicted_masks_are_flagged(run_folder, tmp_path, masks, level, text):
    joint = changed(run_folder, tmp_path, lambda record: record.update(masks=masks))
    assert joint.level == level
    assert any(text in flag.text for flag in joint.visits[0].flags)


def test_layers_that_do_not_recompose_are_an_alert(run_folder, tmp_path):
    joint = changed(
        run_folder, tmp_path, lambda record: record["reconstruction_error"].update(mse=1e-3)
    )
    assert joint.level == ALERT


def test_a_doubt_about_masks_is_a_warning(run_folder, tmp_path):
    note = "the upper mask lies below the lower one: are the two masks swapped?"
    joint = changed(run_folder, tmp_path, lambda record: record["notes"].append(note))
    assert joint.level == WARNING


def test_a_file_changed_since_is_an_alert_and_not_shown(run_folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run_folder / "alone", out)
    (out / "only_upper.png").write_bytes((out / "only_lower.png").read_bytes())
    (joint,) = collect([out])
    assert joint.level == ALERT
    assert not joint.visits[0].usable
    (out / "only_upper.png").unlink()
    (joint,) = collect([out])
    assert "is missing" in joint.visits[0].flags[0].text


def test_nothing_to_report_is_said(tmp_path):
    (tmp_path / "a.json").write_text('{"schema": 1}')
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="nothing to report"):
        collect([tmp_path])
    with pytest.raises(InputError, match="does not exist"):
        collect([tmp_path / "none"])


def test_a_damaged_table_is_said(tmp_path, write_pairs):
    write_pairs(tmp_path / "jsn.csv", [("j", "a.png", "b.png", "nan", False, "")][:0])
    with (tmp_path / "jsn.csv").open("a") as stream:
        stream.write("j,a.png,b.png,much,,False,0.9,,\n")
    with pytest.raises(InputError, match="damaged table"):
        collect([tmp_path])
