"""``blsgan evaluate`` on phantoms: what it prints, writes, and refuses."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from blsgan.cli.evaluate import command
from blsgan.data.dataset import load_root
from blsgan.data.layout import content_digest
from blsgan.data.splits import is_validation
from blsgan.errors import BlsganError, InputError, OutputError, UsageError
from blsgan.evaluation.figures import draw_by_size
from blsgan.evaluation.protocol import Part


def evaluate(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation") / "results"
    result = evaluate("--data", dataset, "--no-model", "-o", output)
    assert result.exit_code == 0, result.output
    return output, result


def test_the_tables_name_split_counts_and_seed(finished):
    _, result = finished
    assert "split val: 6 images of 3 joints; seed 0; closed forms only" in result.stdout
    for method in (
        "copy",
        "harmonic + physics, true k",
        "equal split, k=0.55",
        "limit: true share",
        "floor: the registration itself",
    ):
        assert f"| {method} |" in result.stdout


def test_json_markdown_and_csv_agree(finished, dataset):
    output, _ = finished
    report = json.loads((output / "evaluation.json").read_text())
    assert (report["split"], report["seed"], report["model"]) == ("val", 0, {})
    images = [image for image in load_root(dataset) if is_validation(image.joint)]
    assert report["dataset"] == {"images": 6, "joints": 3, "sha256": content_digest(images)}
    with (output / "synthetic.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "copy"]
    mean = report["synthetic"]["methods"]["copy"]["overlap_psnr_db"]["mean"]
    assert mean == pytest.approx(np.mean([float(row["overlap_psnr_db"]) for row in rows]))
    assert f"{mean:.2f}" in (output / "evaluation.md").read_text()
    with (output / "real.csv").open(newline="") as file:
        layers = [row for row in csv.DictReader(file) if row["kind"] == "layer"]
    assert sum(report["real"]["comparisons"].values()) * 6 == len(layers)
    copied = report["real"]["methods"]["copy"]
    both = [copied[bone]["psnr_db"]["mean"] for bone in ("upper", "lower")]
    assert copied["mean_psnr_db"]["mean"] == pytest.approx(np.mean(both))
    bands = report["synthetic"]["spectrum"]["mse"]["copy"]
    mse = report["synthetic"]["methods"]["copy"]["overlap_mse"]["mean"]
    assert sum(bands) == pytest.approx(mse)


def test_the_same_command_gives_the_same_figures(finished, dataset, tmp_path):
    first, _ = finished
    assert evaluate("--data", dataset, "--no-model", "-o", tmp_path, "--no-figures").exit_code == 0
    reports = []
    for folder in (first, tmp_path):
        report = json.loads((folder / "evaluation.json").read_text())
        for method in report["synthetic"]["methods"].values():
            del method["time_ms"]
        reports.append(report)
    assert reports[0] == reports[1]


def test_a_rerun_of_one_part_leaves_nothing_of_the_other(finished, dataset, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "error_panel.png").write_bytes(b"of an earlier run")
    result = evaluate("--data", dataset, "--no-model", "--part", "real", "-o", folder)
    assert result.exit_code == 0, result.output
    assert not (folder / "synthetic.csv").exists()
    assert not (folder / "error_panel.png").exists()
    assert json.loads((folder / "evaluation.json").read_text())["synthetic"] is None
    assert (folder / "real.csv").exists()


def test_frechet_distances_name_their_features_and_counts(finished):
    output, result = finished
    assert "## Fréchet distance, patch DCT" in result.stdout
    assert "FID" not in result.stdout
    report = json.loads((output / "evaluation.json").read_text())
    (synthetic,), (real,) = report["synthetic"]["frechet"], report["real"]["frechet"]
    assert synthetic["generated"] == 2 * report["synthetic"]["images"]
    assert real["generated"] == 2 * 3
    assert real["distance"]["copy"] > 0
    assert f"({real['generated']} bones against {real['real']})" in result.stdout


@pytest.mark.parametrize("name", ["metric_by_overlap_size.png", "mse_spectrum.png"])
def test_figures_are_pictures(finished, name):
    pytest.importorskip("matplotlib", reason="figures need the extra 'figures'")
    data = (finished[0] / name).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_missing_matplotlib_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BlsganError, match="matplotlib"):
        draw_by_size(Part(summary={"methods": {}}), tmp_path / "figure.png")
    assert not any(tmp_path.iterdir())


def test_a_model_stands_beside_the_closed_forms(dataset, network, tmp_path):
    result = evaluate(
        "--data",
        dataset,
        "--weights",
        network,
        "--backend",
        "onnx",
        "--part",
        "synthetic",
        "-o",
        tmp_path / "results",
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "results" / "evaluation.json").read_text())
    assert report["model"]["sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()
    assert report["model"]["backend"] == "onnx"
    model = report["synthetic"]["methods"]["blsgan random"]
    assert model["reconstruction_mse"]["mean"] < 1e-10
    copied = report["synthetic"]["methods"]["copy"]["union_psnr_db"]["mean"]
    assert model["union_psnr_db"]["mean"] != pytest.approx(copied)
    assert f"sha256 {report['model']['sha256'][:12]}" in result.stdout


def test_a_mirrored_model_is_said_to_be_one(dataset, network, tmp_path):
    errors = {}
    for option, name in (((), "blsgan random"), (("--mirrored",), "blsgan random, mirrored")):
        folder = tmp_path / name
        result = evaluate(
            "--data",
            dataset,
            "--weights",
            network,
            "--part",
            "synthetic",
            "-o",
            folder,
            "--no-figures",
            *option,
        )
        assert result.exit_code == 0, result.output
        report = json.loads((folder / "evaluation.json").read_text())
        assert report["model"]["mirrored"] == bool(option)
        errors[name] = report["synthetic"]["methods"][name]["overlap_mse"]["mean"]
    assert len(set(errors.values())) == 2


def test_the_sheet_alone_measures_nothing_and_keeps_what_was_measured(dataset, network, tmp_path):
    (tmp_path / "evaluation.json").write_text("of before")
    result = evaluate(
        "--data", dataset, "--weights", network, "--part", "sheet", "-o", tmp_path, "--split", "all"
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "sheet_1.png"}
    assert result.stdout == ""


def test_the_error_panel_shows_the_model(dataset, network, tmp_path):
    pytest.importorskip("matplotlib", reason="figures need the extra 'figures'")
    result = evaluate("--data", dataset, "--weights", network, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    for name in ("error_panel.png", "real_panel.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_splits_differ(dataset):
    result = evaluate("--data", dataset, "--split", "train", "--no-model", "--part", "real")
    assert "split train: 2 images of 1 joints" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--no-model", "--weights", "lite"), UsageError, "leave out --weights"),
        (("--no-model", "--mirrored"), UsageError, "--mirrored"),
        (("--no-model", "--figures"), UsageError, "add -o"),
        (("--weights", "no-such-file.onnx"), BlsganError, "no-such-file.onnx"),
        (("--part", "sheet"), UsageError, "add -o"),
        (("--part", "sheet", "--no-model", "-o", "out"), UsageError, "leave out --no-model"),
    ],
)
def test_contradictions(dataset, arguments, kind, words):
    result = evaluate("--data", dataset, *arguments)
    assert isinstance(result.exception, kind)
    assert words in str(result.exception)


@pytest.mark.parametrize(
    "arguments", [("--part", "synthetic,reel"), ("--split", "test"), ("--seed", "-1")]
)
def test_wrong_usage(dataset, arguments):
    result = evaluate("--data", dataset, "--no-model", *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.output


def test_a_folder_that_is_not_the_dataset(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        result = evaluate("--data", folder, "--no-model")
        assert isinstance(result.exception, InputError)
        assert str(folder) in str(result.exception)


def test_listed_files_that_are_missing_are_counted_before_the_work(dataset, tmp_path):
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    listed = load_root(root)
    for image in listed:
        image.upper.unlink()
    result = evaluate("--data", root, "--no-model", "--split", "all")
    assert isinstance(result.exception, InputError)
    assert f"{len(listed)} of {3 * len(listed)} files" in str(result.exception)
    assert str(listed[0].upper) in str(result.exception)


def test_a_damaged_image_is_named_and_nothing_is_written(dataset, tmp_path):
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    victim = load_root(root)[0].image
    victim.write_bytes(victim.read_bytes()[:400])
    output = tmp_path / "results"
    result = evaluate("--data", root, "--no-model", "--split", "all", "-o", output)
    assert isinstance(result.exception, InputError)
    assert str(victim) in str(result.exception)
    assert not output.exists()


def test_an_output_folder_that_is_a_file(dataset, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    result = evaluate("--data", dataset, "--no-model", "-o", blocked)
    assert isinstance(result.exception, OutputError)
    assert blocked.read_text() == "in the way"


def test_evaluating_needs_no_torch_and_draws_only_when_asked():
    code = (
        "import sys; import blsgan.cli.evaluate, blsgan.evaluation.protocol, "
        "blsgan.evaluation.results, blsgan.evaluation.figures; "
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_part_with_nothing_to_measure_does_not_cost_the_other(dataset, tmp_path):
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    listing = root / "LS_K1_all_train"
    entries = json.loads(listing.read_text())
    listing.write_text(json.dumps([e for e in entries if e["image"].endswith("b.jpg")]))
    result = evaluate("--data", root, "--no-model", "--split", "all")
    assert result.exit_code == 0, result.output
    assert "equal split, true k" in result.output
    assert "has an overlap of 20 px" in result.output
    alone = evaluate("--data", root, "--no-model", "--split", "all", "--part", "real")
    assert isinstance(alone.exception, InputError)
