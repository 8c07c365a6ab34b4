"""``blsgan bench ops``: that it measures, writes what it says and refuses what it cannot do."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from blsgan.cli import bench  # noqa: E402
from blsgan.cli import main as run_blsgan  # noqa: E402
from blsgan.ops import benchmark  # noqa: E402
from blsgan.ops.cases import BY_NAME, CASES, Joint  # noqa: E402

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_csv_row_for_each_variant_and_phase_and_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "layer.csv"
    code = run_blsgan(
        [
            "bench",
            "ops",
            "--quick",
            "--op",
            "layer_loss",
            "--size",
            "training",
            "--dtype",
            "float32",
            "--without",
            "compile",
            "--threads",
            "1",
            "-o",
            str(path),
        ]
    )
    assert code == 0
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], row["variant"]) for row in rows] == [
        (phase, variant)
        for phase in ("forward", "backward", "full")
        for variant in ("blsgan", "eager")
    ]
    for row in rows:
        assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert int(row["runs"]) >= 5
        assert row["threads"] == "1"
        assert row["torch"] == torch.__version__
    full = next(row for row in rows if row["phase"] == "full")
    # 2x2x128x128: layers and truth twice, masks twice, one gradient; float32 and bool.
    assert int(full["bytes_moved"]) == 2 * 128 * 128 * ((16 + 2) + (16 + 2 + 8))
    assert (tmp_path / "layer.png").read_bytes().startswith(b"\x89PNG")
    for row in rows:
        mine = row["variant"] == "blsgan"
        assert (row["kernel_ms"] != "") is mine
        assert (row["cached_ms"] != "") is mine
        assert not mine or (float(row["cached_ms"]) > 0 and float(row["kernel_ms"]) >= 0)
    table = (tmp_path / "layer.md").read_text(encoding="utf-8").splitlines()
    eager = next(r for r in rows if r["phase"] == "full" and r["variant"] == "eager")
    assert table[0].startswith("| op | dtype | 2x2x128x128: ms | eager |")
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells[:2] == ["`layer_loss`", "float32"]
    ratio = float(eager["slower_than_blsgan"])
    assert float(cells[3].rstrip("x")) == pytest.approx(ratio, abs=0.06)
    assert cells[4] == "-"


def test_a_dtype_without_baselines_is_compared_with_the_first(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "pairs.csv"
    code = run_blsgan(
        [
            "bench",
            "ops",
            "--quick",
            "--op",
            "synthesize_overlap",
            "--size",
            "training",
            "--dtype",
            "float32",
            "--dtype",
            "float16",
            "--without",
            "compile",
            "--threads",
            "1",
            "-o",
            str(path),
        ]
    )
    assert code == 0
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == "full"]
    assert [(row["dtype"], row["variant"]) for row in rows] == [
        ("float32", "blsgan"),
        ("float32", "eager"),
        ("float16", "blsgan"),
    ]
    half = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()[3].split("|")
    expected = float(rows[1]["p50_ms"]) / float(rows[2]["p50_ms"])
    assert half[2].strip() == "float16"
    assert float(half[4].strip().rstrip("x")) == pytest.approx(expected, rel=0.01, abs=0.06)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--op", "nonsense"], 2, "there is no op nonsense"),
        (["--device", "tpu"], 2, "tpu"),
        (["--device", "meta"], 2, "the ops run on cpu and cuda"),
        (["-o", "result.txt"], 2, "must end in .csv"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(options, code, message, capsys):
    assert run_blsgan(["bench", "ops", "--quick", *options]) == code
    assert message in capsys.readouterr().err


def test_no_gpu_is_one_sentence(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert run_blsgan(["bench", "ops", "--device", "cuda"]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_help_imports_no_torch():
    assert "roofline" in CliRunner().invoke(bench.command, ["ops", "--help"]).output
    code = "import sys, blsgan.cli.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_op_has_a_benchmark_script():
    for op in {case.op for case in CASES}:
        assert (BENCHMARKS / f"bench_{op}.py").is_file()


def test_quantiles_and_turns():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [benchmark.quantile(values, q) for q in (0.0, 0.2, 0.5, 0.8, 1.0)] == [1, 2, 3, 4, 5]
    order: list[str] = []
    times = benchmark.in_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        torch.device("cpu"),
        0.0,
        warm_up=1,
        least=3,
    )
    # Each measured call after one that is not.
    assert order == ["a", "b"] + ["a", "a", "b", "b"] * 3
    assert {name: len(runs) for name, runs in times.items()} == {"a": 3, "b": 3}


def test_bytes_are_the_tensors_sizes():
    """The traffic formulas against the inputs themselves and a forward result."""
    joint = Joint((2, 3, 8, 16), dtype=torch.bfloat16)
    for case in BY_NAME.values():
        args = case.inputs(joint)
        result = case.call(*args)
        results = result if isinstance(result, tuple) else (result,)
        images = [t for t in (*args, *results) if t.dim() == 4]
        assert case.bytes_moved(joint)[0] == sum(t.numel() * t.itemsize for t in images), case.name


def test_the_generators_objective_is_a_handful_of_operators():
    from blsgan import ops
    from blsgan.ops import reference

    joint = Joint((2, 2, 16, 16))
    layers, logits = joint.layers.requires_grad_(), joint.supervisor_logits.requires_grad_()
    k, masks, image, truth = joint.soft_tissue, joint.masks, joint.image, joint.true_layers

    def objective(module):
        loss = (
            module.supervisor_loss(logits, masks)
            + module.reconstruction_loss(layers, masks, k, image)
            + module.layer_loss(layers, truth, masks)
        )
        loss.backward()

    ours = benchmark.count_dispatches(lambda: objective(ops))
    # Three losses forward and backward, two sums, the gradient's seed, three gradients that add up.
    assert 6 <= ours <= 12
    assert benchmark.count_dispatches(lambda: objective(reference)) > 10 * ours


def test_the_gpu_script_says_that_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_check.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no CUDA device" in done.stdout


def test_the_gpu_scripts_result_becomes_the_readmes_table(tmp_path):
    row = {"phase": "full", "dtype": "float32", "roofline": "0.814", "op": "layer_loss"}
    result = {
        "machine": {"gpu": "Some GPU", "torch": "2.13.0", "time": "2026-01-02T03:04:05Z"},
        "commit": "abc",
        "ops": [
            {**row, "size": size, "variant": variant, "slower_than_blsgan": str(slower)}
            for size, scale in (("training", 1), ("large", 2))
            for variant, slower in (("blsgan", 1), ("eager", 6 * scale), ("compile", 4 * scale))
        ],
        "launches": {"blsgan": 9, "eager": 200},
        "inference": {"32": {"p50_ms": 1.25, "psnr_to_cpu_db": 99.0}},
        "training": [],
        "stages": {"build": {"status": "passed", "seconds": 61.2}},
    }
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--report", str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "On Some GPU, torch 2.13.0, 2026-01-02, commit abc."
    assert "| `layer_loss` | 6.0x | 4.0x | 12.0x | 8.0x | 81 % |" in lines
    assert "| build | passed | 61 |" in lines
    shown = (BENCHMARKS.parent / "docs/results.md").read_text(encoding="utf-8")
    assert lines[2] in shown.splitlines()


def test_the_table_of_the_lower_bound_is_what_the_script_writes():
    script = BENCHMARKS / "cuda_time_model.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
