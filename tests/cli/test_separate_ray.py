"""`blsgan separate --ray` on a local Ray: a worker killed in mid-run costs nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from blsgan.cli import main
from blsgan.io import results
from blsgan.pipeline.on_ray import SeparateJoints
from blsgan.records.separation import SeparationRecord

COUNT = 40


def test_the_map_batches_class(network, write_joint, tmp_path):
    """What a user's own Ray Data pipeline calls; no Ray needed for that."""
    joint = write_joint(tmp_path / "in")
    rows = {
        "image": np.array([str(joint.image), str(tmp_path / "missing.png")]),
        "upper": np.array([str(joint.upper), ""]),
        "lower": np.array([str(joint.lower), ""]),
        "folder": np.array(["a/b", "."]),
        "name": np.array(["joint", "missing"]),
    }
    separate = SeparateJoints(tmp_path / "out", weights=str(network), require_masks=True)
    first, second = separate(rows), separate(rows)
    assert (tmp_path / "out/a/b/joint.json").is_file()
    assert first["skipped"].tolist() == [False, False]
    assert second["skipped"].tolist() == [True, False]
    assert first["failure"][0] == ""
    assert "has no upper and lower mask" in first["failure"][1]
    assert isinstance(json.loads(first["notes"][0]), list)


def test_options_that_need_each_other(write_joint, tmp_path, capfd):
    joint = write_joint(tmp_path / "in")
    out = str(tmp_path / "out")
    assert main(["separate", str(tmp_path / "in"), "-o", out, "--ray-workers", "2"]) == 2
    assert "without --ray" in capfd.readouterr().err
    assert main(["separate", str(joint.image), "-o", out, "--ray"]) == 2
    assert "--ray is for a folder or a list" in capfd.readouterr().err


@pytest.fixture
def cluster(tmp_path_factory):
    """A Ray of two cores on this machine, with little memory."""
    ray = pytest.importorskip("ray", reason="Ray is in the extra 'ray'")
    pytest.importorskip("ray.data", reason="Ray Data is in the extra 'ray'")
    try:
        ray.init(
            address="local", num_cpus=2, object_store_memory=80 * 2**20,
            include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
    except Exception as error:  # its daemons: no matter of ours
        pytest.skip(f"Ray does not start here: {error}")
    yield ray
    ray.shutdown()


def workers() -> list[int]:
    """Processes that separate for this test's own Ray, by the title Ray gives them."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if is_worker(folder)]


def is_worker(process: Path) -> bool:
    """Whether ``/proc/N`` separates, and descends from this process."""
    try:
        title = (process / "cmdline").read_bytes()
        if not title.startswith(b"ray::") or b"SeparateJoints" not in title:
            return False
        while process.name not in ("0", "1", str(os.getpid())):
            process = Path("/proc", (process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it ended
        return False
    return process.name == str(os.getpid())


def kill_one(out: Path, seen: dict[str, object]) -> None:
    """When some joints are done, SIGKILL one worker, and remember what was there."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        done = {path: path.stat().st_mtime_ns for path in out.glob("joint*.json")}
        alive = workers()
        if len(done) >= 3 and len(alive) == 2:
            os.kill(alive[0], signal.SIGKILL)
            seen.update(done=done, killed=alive[0])
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_repeats_nothing(
    cluster, network, write_joint, tmp_path, capfd
):
    joints = tmp_path / "in"
    for index in range(COUNT):
        write_joint(joints, f"joint{index:02d}")
    out = tmp_path / "out"
    seen: dict[str, object] = {}
    killer = threading.Thread(target=kill_one, args=(out, seen))
    killer.start()
    arguments = ["separate", joints, "-o", out, "--weights", network, "--ray", "--threads", "1"]
    status = main(list(map(str, arguments)))
    killer.join()
    captured = capfd.readouterr()
    assert status == 0, captured.err
    assert "killed" in seen, "no two workers were seen at work"
    assert 3 <= len(seen["done"]) < COUNT, "the kill came too late to mean anything"

    # Nothing lost: every joint is there, whole. Each is counted once.
    for index in range(COUNT):
        name = f"joint{index:02d}"
        files = [out / file for file in results.result_names(name, "png")]
        assert results.finished(SeparationRecord, files, {"name": name})
    # Ray has its own say about the kill on the same stream.
    counts = re.search(r"^(\d+) separated, (\d+) already finished, 0 failed", captured.out, re.M)
    assert counts, captured.out
    assert sum(map(int, counts.groups())) == COUNT
    # Nothing twice: what was finished when the worker died was not made again.
    assert {path: path.stat().st_mtime_ns for path in seen["done"]} == seen["done"]

    # A second run, without Ray, finds everything done.
    assert main(["separate", str(joints), "-o", str(out), "--weights", str(network)]) == 0
    assert f"0 separated, {COUNT} already finished, 0 failed" in capfd.readouterr().out
