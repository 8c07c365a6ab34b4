"""Comparisons: paired differences, what is refused, and what is evaluated only once."""

import csv
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from blsgan.cli import compare as compare_cli
from blsgan.cli import main
from blsgan.cli.compare import command
from blsgan.errors import BlsganError, InputError, UsageError, WeightsError
from blsgan.evaluation.compare import METRICS, compare, find_evaluation, load_evaluation
from blsgan.io.tables import write_csv

JOINTS = [f"{i:05d}_L_2" for i in range(12)]
MODEL = {"weights": "mine", "sha256": "ab" * 32, "architecture": "lite", "backend": "onnx"}


def write_evaluation(
    folder, gain, *, draw=0, spread=0.01, joints=JOINTS, real=True, name="blsgan mine", **changes
):
    """An evaluation whose model is ``gain`` dB above the same difficult or easy images."""
    folder.mkdir()
    rng = np.random.default_rng(5)  # the same images for every call
    noise = np.random.default_rng(draw)
    synthetic, layers, pairs = [], [], []
    for number, joint in enumerate(joints):
        chance = 6e-3 * (-1) ** number  # of a pair of truths, alike for every method
        for visit in "ab":
            level = 30 + 4 * rng.standard_normal()
            for method, extra in (("copy", -10.0), (name, gain)):
                psnr = level + extra + spread * noise.standard_normal()
                synthetic.append(
                    {
                        "method": method,
                        "joint": joint,
                        "image": f"{joint}/{visit}",
                        "overlap_mse": 10 ** (-psnr / 10),
                        "overlap_psnr_db": psnr,
                        "overlap_ssim": psnr / 40,
                        "union_psnr_db": psnr + 8,
                        "union_ssim": psnr / 50,
                    }
                )
                layers += [
                    {
                        "method": method,
                        "joint": joint,
                        "image": f"{joint}/{visit}",
                        "kind": "layer",
                        "other": f"{joint}/c",
                        "bone": bone,
                        "psnr_db": psnr - loss,
                    }
                    for bone, loss in (("upper", 5), ("lower", 3))
                ]
                layers.append(
                    {"method": method, "joint": joint, "image": f"{joint}/{visit}", "kind": "image"}
                )
                pairs += [
                    {
                        "method": method,
                        "joint": joint,
                        "image": f"{joint}/{visit}",
                        "masks": masks,
                        "kind": "pair",
                        "bone": bone,
                        "other": f"{joint}/c",
                        "third": f"{joint}/d",
                        "error": 10 ** ((2 - extra) / 10 - 2.5) + chance + more,
                        "ring_error": 10 ** ((2 - extra) / 10 - 2.5) if visit == "a" else "",
                    }
                    for bone in ("upper", "lower")
                    for masks, more in (("drawn", 0), ("predicted", 1))
                ]
    write_csv(folder / "synthetic.csv", synthetic)
    frechet = [{"name": "Fréchet distance, patch DCT", "distance": {name: 1 - gain / 10}}]
    if real:
        write_csv(folder / "real.csv", layers)
        write_csv(folder / "layers.csv", pairs)
    report = {
        "schema": 2,
        "split": "val",
        "seed": 0,
        "model": MODEL,
        "synthetic": {},
        "dataset": {"images": 24, "joints": 12, "sha256": "cd" * 32},
        "real": {"frechet": frechet} if real else None,
        "layers": {} if real else None,
        **changes,
    }
    (folder / "evaluation.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def folders(tmp_path):
    return [
        write_evaluation(tmp_path / name, gain, draw=index)
        for index, (name, gain) in enumerate((("first", 0.0), ("better", 0.5), ("same", 0.0)))
    ]


def loaded(folders):
    return [load_evaluation(find_evaluation(folder), folder.name) for folder in folders]


def test_differences_are_paired(folders):
    found = compare(loaded(folders))
    assert list(found.rows) == ["first", "better", "same", "copy"]
    row, difference = found.rows["better"], found.differences["better"]
    for key in ("overlap_psnr_db", "upper_psnr_db", "lower_psnr_db", "mean_psnr_db"):
        # 4 dB of spread between images, 0.5 dB between models: only pairs can tell.
        assert row[key]["high"] - row[key]["low"] > 2
        assert 0.48 < difference[key]["low"] < difference[key]["high"] < 0.52
        same = found.differences["same"][key]
        assert same["low"] < 0.005
        assert same["high"] > -0.005
    assert difference["overlap_mse"]["high"] < 0
    mean = np.mean([row["upper_psnr_db"]["mean"], row["lower_psnr_db"]["mean"]])
    assert row["mean_psnr_db"]["mean"] == pytest.approx(mean)
    assert found.differences["copy"]["overlap_psnr_db"]["mean"] == pytest.approx(-10, abs=0.05)
    assert "first" not in found.differences
    assert found.frechet["Fréchet distance, patch DCT"]["better"] == pytest.approx(0.95)


def test_corrected_errors_are_averaged_before_they_are_expressed_in_db(folders):
    """A pair's error may be negative; means of the same pairs differ by what the methods do."""
    with (folders[0] / "layers.csv").open() as file:
        assert any(float(r["error"]) < 0 for r in csv.DictReader(file) if r["masks"] == "drawn")
    found = compare(loaded(folders))
    for bone in ("upper", "lower"):
        row, difference = found.rows["better"], found.differences["better"]
        assert row[f"{bone}_error"]["mean"] == pytest.approx(23.5)
        assert row[f"{bone}_error"]["high"] - row[f"{bone}_error"]["low"] > 0.5
        assert difference[f"{bone}_error"]["mean"] == pytest.approx(0.5)
        assert difference[f"{bone}_error"]["low"] > 0.1
        assert difference[f"{bone}_ring_error"]["mean"] == pytest.approx(0.5, abs=1e-6)
        assert found.differences["same"][f"{bone}_error"]["mean"] == 0


@pytest.mark.parametrize("first", [0, 1])
def test_mirrored_evaluations_are_compared_too(tmp_path, first):
    mirrored = write_evaluation(
        tmp_path / "mirrored", 0.1, name="blsgan mine, mirrored", model={**MODEL, "mirrored": True}
    )
    folders = [write_evaluation(tmp_path / "plain", 0.0), mirrored]
    found = compare(loaded([folders[first], folders[1 - first]]))
    assert set(found.rows) == {"plain", "mirrored", "copy"}
    gain = found.differences[("mirrored", "plain")[first]]["overlap_psnr_db"]["mean"]
    assert gain == pytest.approx(0.1 if first == 0 else -0.1, abs=0.02)
    assert "mirrored: sha256 abababababab, lite, onnx, mirrored" in found.tables()[0].markdown()


def test_the_order_of_records_does_not_matter(folders):
    lines = (folders[1] / "synthetic.csv").read_text().splitlines()
    before = compare(loaded(folders)).differences["better"]
    (folders[1] / "synthetic.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    after = compare(loaded(folders)).differences["better"]
    for key, interval in before.items():
        assert after[key]["mean"] == pytest.approx(interval["mean"]), key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 3}, "seed 0 and 3"),
        ({"split": "all"}, "split val and all"),
        ({"dataset": {"images": 24, "joints": 12, "sha256": "ee" * 32}}, "data cdcd"),
        ({"seed": 3, "split": "all"}, "split val and all, seed 0 and 3"),
    ],
)
def test_other_data_splits_and_seeds_are_refused(tmp_path, folders, changes, words):
    other = write_evaluation(tmp_path / "other", 0.2, **changes)
    with pytest.raises(UsageError, match=words) as error:
        compare(loaded([folders[0], other]))
    assert "first and other" in str(error.value)


def test_other_images_are_refused(tmp_path, folders):
    other = write_evaluation(tmp_path / "other", 0.2, joints=JOINTS[1:])
    with pytest.raises(InputError, match=r"22 and 24, 22 in common"):
        compare(loaded([folders[0], other]))


def test_a_part_that_one_lacks_is_left_out(tmp_path, folders):
    other = write_evaluation(tmp_path / "other", 0.2, real=False)
    found = compare(loaded([folders[0], other]))
    assert {metric.part for metric in found.metrics} == {"synthetic"}
    assert found.differences["other"]["overlap_psnr_db"]["mean"] == pytest.approx(0.2, abs=0.02)
    third = write_evaluation(tmp_path / "third", 0.2, synthetic=None)
    with pytest.raises(UsageError, match="no part was measured by all: other has synthetic"):
        compare(loaded([other, third]))


def test_what_is_no_evaluation_is_one_sentence(tmp_path, folders):
    closed = write_evaluation(tmp_path / "closed", 0.0, model={})
    with pytest.raises(InputError, match="without a model"):
        compare(loaded([folders[0], closed]))
    old = write_evaluation(tmp_path / "old", 0.0, schema=1)
    with pytest.raises(InputError, match="schema: Input should be 2"):
        loaded([old])
    path = folders[2] / "evaluation.json"
    (folders[2] / "synthetic.csv").unlink()
    with pytest.raises(InputError, match=r"synthetic\.csv"):
        load_evaluation(path, "same")
    for text in ("{", "[]", '{"schema": 2}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match=str(path)):
            load_evaluation(path, "same")
    lines = (folders[1] / "synthetic.csv").read_text().replace("overlap_psnr_db", "other")
    (folders[1] / "synthetic.csv").write_text(lines)
    with pytest.raises(InputError, match="CSV files are damaged"):
        compare(loaded(folders[:2]))


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_writes_and_prints_both_tables(folders, tmp_path):
    output = tmp_path / "out"
    result = run(*folders, "-o", output, "--no-figures")
    assert result.exit_code == 0, result.output
    report = json.loads((output / "comparison.json").read_text())
    assert report["reference"] == "first"
    assert set(report["rows"]) == {"first", "better", "same", "copy"}
    assert "Difference to first [95 %]" in result.stdout
    text = (output / "comparison.md").read_text()
    mean = report["differences"]["better"]["overlap_psnr_db"]["mean"]
    assert f"{mean:+.2f} [" in text
    for metric in METRICS:
        assert metric.title in text
    alone = run(*folders[:2], "--no-closed-forms")
    assert "copy" not in alone.stdout


def test_the_figure_is_a_picture(folders, tmp_path):
    pytest.importorskip("matplotlib", reason="figures need the extra 'figures'")
    result = run(*folders, "-o", tmp_path / "out", "--figures")
    assert result.exit_code == 0, result.output
    data = (tmp_path / "out" / "comparison.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_labels_are_as_short_as_they_can_be(tmp_path):
    for parts in (("a", "val"), ("b", "val")):
        (tmp_path.joinpath(*parts)).mkdir(parents=True)
    runs = [str(tmp_path / "a" / "val"), str(tmp_path / "b" / "val"), "lite"]
    assert compare_cli._labels(runs) == ["a/val", "b/val", "lite"]
    with pytest.raises(UsageError, match="lite is given twice"):
        compare_cli._labels(["lite", "lite"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lite",), "give two or more"),
        (("lite", "other"), "is no evaluation; give a folder"),
        (("lite", "other", "--data", "x"), "add -o FOLDER"),
        (("lite", "other", "--figures"), "--figures needs a folder"),
    ],
)
def test_wrong_calls(arguments, words, capsys):
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_unknown_weights_are_refused_before_others_are_evaluated(
    dataset, network, tmp_path, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("evaluated already")

    monkeypatch.setattr("blsgan.evaluation.run.run_evaluation", refuse)
    result = run(network, "nobody", "--data", dataset, "-o", tmp_path / "out")
    assert isinstance(result.exception, WeightsError)


def test_weights_are_evaluated_once(dataset, network, make_network, tmp_path, monkeypatch):
    other = tmp_path / "other.onnx"
    make_network(other, seed=4)
    output = tmp_path / "out"
    arguments = (network, other, "--data", dataset, "-o", output, "--no-figures")
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    assert len(list((output / "evaluations").glob("*/evaluation.json"))) == 2
    assert "| random.onnx |" in first.stdout

    def refuse(*args, **kwargs):
        raise AssertionError("evaluated again")

    monkeypatch.setattr("blsgan.evaluation.run.run_evaluation", refuse)
    again = run(*arguments)
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    # Other images: the evaluation that lies there is of no use.
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    image = next(iter(sorted(root.rglob("a_mask_upper.bmp"))))
    image.write_bytes(image.read_bytes()[:-1] + b"\0")
    stale = run(network, other, "--data", root, "-o", output, "--split", "all")
    assert isinstance(stale.exception, (AssertionError, BlsganError))
