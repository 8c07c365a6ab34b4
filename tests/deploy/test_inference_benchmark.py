"""``blsgan bench inference``: that it measures, compares and writes what it says."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from blsgan.cli import main
from blsgan.deploy import benchmark
from blsgan.deploy.benchmark import InferenceTiming, Variant, markdown

pytest.importorskip("torch")


@pytest.mark.slow
def test_a_table_of_runtimes(small_weights, tmp_path, capfd):
    """Every runtime that is installed, each in a process of its own, answers as torch does."""
    output = tmp_path / "table.csv"
    arguments = ["bench", "inference", "--model", small_weights, "--runtime", "onnxruntime",
                 "--size", "64", "--batch", "2", "--threads", "1", "--seconds", "0.05",
                 "-o", output]  # fmt: skip
    assert main(list(map(str, arguments))) == 0
    with output.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["runtime"], row["precision"]) for row in rows] == [
        ("torch", "fp32"), ("ONNX Runtime", "fp32"), ("ONNX Runtime", "int8"),
    ]  # fmt: skip
    for row in rows:
        assert row["note"] == ""
        assert 0 < float(row["p50_ms"]) <= float(row["p99_ms"])
        assert int(row["runs"]) >= 5
        # Joints over time: within the fastest and the slowest call.
        assert float(row["joints_per_s"]) >= 2000 / float(row["p99_ms"]) * 0.5
        assert float(row["peak_mb"]) > 20
        assert (row["batch"], row["threads"], row["model"]) == ("2", "1", "small")
    eager, fp32, int8 = (float(row["psnr_db"]) for row in rows)
    assert eager == 100  # the most that PSNR says here
    assert fp32 > 90
    assert 20 < int8 < 100
    assert float(rows[0]["times_torch"]) == 1
    # PyTorch alone takes more than ONNX Runtime, which must not have it in its process.
    assert float(rows[1]["peak_mb"]) < 0.8 * float(rows[0]["peak_mb"])
    table = output.with_suffix(".md").read_text(encoding="utf-8")
    assert table in capfd.readouterr().out
    assert table.count("\n") == 5
    assert "| small | torch fp32 | 2 |" in table


def test_weights_are_named_as_everywhere(tmp_path):
    sample = benchmark.phantom_sample(1, 64, 64, 0)
    np.savez(tmp_path / "inputs.npz", image=sample.image, masks=sample.masks)
    prepared = benchmark.Prepared("lite", "lite", {})
    eager = Variant("torch", "fp32", "torch")
    row, layers = benchmark._measured(prepared, eager, sample, tmp_path, 1, 0.01)
    assert layers is not None, row["note"]
    assert layers.shape == sample.masks.shape


def test_what_cannot_run_says_why(small_weights, tmp_path):
    prepared = benchmark.Prepared("small", small_weights, {"fp32": tmp_path / "none.onnx"})
    sample = benchmark.phantom_sample(1, 64, 64, 0)
    np.savez(tmp_path / "inputs.npz", image=sample.image, masks=sample.masks)
    missing = Variant("OpenVINO", "fp32", "no_such_package")
    row, layers = benchmark._measured(prepared, missing, sample, tmp_path, 1, 0.01)
    assert (row["note"], layers) == ("no_such_package is not installed", None)
    broken = Variant("ONNX Runtime", "fp32", "onnxruntime")
    row, layers = benchmark._measured(prepared, broken, sample, tmp_path, 1, 0.01)
    assert layers is None
    assert "none.onnx" in row["note"]


def test_the_table_keeps_apart_what_was_measured():
    measured = InferenceTiming(
        "m", "torch", "fp32", 1, 2, 5, 10.0, 12.0, 100.0, 1.0, 64.2, 300.0, 1.0
    )
    failed = InferenceTiming(
        "m", "OpenVINO", "bf16", 1, 2, note="this processor has no bfloat16 arithmetic"
    )
    table = markdown([measured, failed])
    assert "| m | torch fp32 | 1 | 10.0 | 12.0 | 100.0 | 1.00 | 64.2 | 300 |" in table
    assert table.endswith(
        "Not measured: OpenVINO bf16, batch 1: this processor has no bfloat16 arithmetic.\n"
    )
    assert len(InferenceTiming.columns()) == len(measured.values()) == len(failed.values())
    assert failed.values()[5] == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "100"], "a multiple of 32"),
        (["-o", "table.txt"], "must end in .csv"),
        (["--runtime", "nonsense"], "nonsense"),
        (["--batch", "0"], "--batch"),
    ],
)
def test_wrong_options(options, words, capfd):
    assert main(["bench", "inference", *options]) == 2
    assert words in capfd.readouterr().err
