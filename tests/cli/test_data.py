"""``blsgan data``: reports, exit status, and packed files wherever the folder is taken."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from blsgan.cli import main
from blsgan.cli.data import command
from blsgan.cli.evaluate import command as evaluate
from blsgan.data.dataset import load_root
from blsgan.errors import InputError, UsageError


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_verify_counts_and_says_that_all_is_well(dataset, tmp_path):
    path = tmp_path / "report.json"
    result = run("verify", dataset, "-o", path)
    assert result.exit_code == 0, result.output
    assert "images: 8 of 4 joints" in result.stdout
    assert "train: 2 images of 1 joints; val: 6 images of 3 joints" in result.stdout
    assert "0 errors, 0 warnings" in result.stdout
    report = json.loads(path.read_text())
    assert (report["errors"], report["warnings"]) == ([], [])
    assert report["counts"]["images"] == 8


def test_verify_ends_with_1_and_writes_the_report_all_the_same(dataset, tmp_path, capsys):
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    for image in load_root(root):
        image.lower.unlink()
    path = tmp_path / "report.json"
    assert main(["data", "verify", str(root), "-o", str(path)]) == 1
    out, err = capsys.readouterr()
    assert "Errors: missing (8)" in out
    assert "and 3 more" in out
    assert err.count("\n") == 1
    assert "8 errors, 0 warnings" in err
    assert len(json.loads(path.read_text())["errors"]) == 8


def test_verify_prints_json_and_takes_the_old_option(dataset, tmp_path):
    printed = json.loads(run("verify", dataset, "--json").stdout)
    assert printed["counts"]["images"] == 8
    old = run("verify", dataset, "--json", tmp_path / "old.json")
    assert "--json FILE is now -o FILE" in old.stderr
    assert json.loads((tmp_path / "old.json").read_text()) == printed
    assert "one dataset too many" in str(run("verify", dataset, "x.json").exception)


def test_verify_of_no_dataset_is_one_sentence(tmp_path, capsys):
    assert main(["data", "verify", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert str(tmp_path) in err


def test_pack_and_evaluate_give_the_folders_figures(dataset, tmp_path):
    file = tmp_path / "joints.blsgan"
    packed = run("pack", dataset, "-o", file)
    assert packed.exit_code == 0, packed.output
    assert "8 images" in packed.stdout
    reports = []
    for data in (dataset, file):
        output = tmp_path / f"of-{data.name}"
        result = CliRunner().invoke(
            evaluate,
            [
                "--data",
                str(data),
                "--no-model",
                "--part",
                "synthetic",
                "--no-figures",
                "-o",
                str(output),
            ],
        )
        assert result.exit_code == 0, result.output
        report = json.loads((output / "evaluation.json").read_text())
        for method in report["synthetic"]["methods"].values():
            del method["time_ms"]
        reports.append(report)
    assert reports[0] == reports[1]


def test_pack_refuses_what_it_cannot_pack(dataset, tmp_path):
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    load_root(root)[0].upper.unlink()
    result = run("pack", root, "-o", tmp_path / "file")
    assert isinstance(result.exception, InputError)
    assert "1 of 24 files that its lists name are missing" in str(result.exception)
    assert isinstance(run("pack", dataset, "-o", dataset).exception, UsageError)
    assert not (tmp_path / "file").exists()


def test_a_full_disk_leaves_nothing(dataset, tmp_path):
    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "blsgan",
            "data",
            "pack",
            str(dataset),
            "-o",
            str(tmp_path / "file"),
        ],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small,
    )
    assert done.returncode == 1
    assert "larger than files may be here" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("pack",), ("pack", "x"), ("verify",)])
def test_wrong_usage(arguments):
    assert run(*arguments).exit_code == 2
