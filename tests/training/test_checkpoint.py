"""A checkpoint is whole or passed over."""

import json

import pytest
import torch

from blsgan.errors import InputError, OutputError
from blsgan.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def write(folder, *steps, keep=3):
    for step in steps:
        weights = {"value": torch.full((3,), float(step))}
        state = {"random": torch.full((2,), step, dtype=torch.uint8)}
        save_checkpoint(folder, Checkpoint(step, weights, state), keep)


def refuse(text):
    raise AssertionError(text)


def test_the_newest_comes_back_and_old_ones_go(tmp_path):
    write(tmp_path, 1, 2, 3, 4)
    loaded = load_checkpoint(tmp_path, refuse)
    assert loaded.step == 4
    assert torch.equal(loaded.weights["value"], torch.full((3,), 4.0))
    assert loaded.state["random"].tolist() == [4, 4]
    assert set(loaded.tensors) == {"value", "random"}
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        f"step-0000000{step}.{kind}"
        for step in (2, 3, 4)
        for kind in ("safetensors", "state.safetensors")
    ]


def test_one_file_for_both_is_read_as_older_runs_wrote_it(tmp_path):
    write(tmp_path, 3)
    (entry,) = json.loads((tmp_path / "index.json").read_text())
    del entry["state"]
    (tmp_path / "index.json").write_text(json.dumps([entry]))
    assert set(load_checkpoint(tmp_path, refuse).tensors) == {"value"}
    write(tmp_path, 4)
    assert load_checkpoint(tmp_path, refuse).step == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("kind", ["safetensors", "state.safetensors"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, damage, kind):
    write(tmp_path, 1, 2)
    path = tmp_path / f"step-00000002.{kind}"
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[:-5])
    elif damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    warnings = []
    assert load_checkpoint(tmp_path, warnings.append).step == 1
    assert len(warnings) == 1
    assert str(path) in warnings[0]


def test_all_damaged_none_there_and_a_broken_index_are_said(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_checkpoint(tmp_path, refuse)
    write(tmp_path, 1)
    (tmp_path / "step-00000001.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="all of its 1 checkpoints are damaged"):
        load_checkpoint(tmp_path, lambda text: None)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match="not a readable index"):
        load_checkpoint(tmp_path, refuse)


def test_a_file_written_but_not_yet_in_the_index_is_no_checkpoint(tmp_path):
    write(tmp_path, 1, 2)
    index = tmp_path / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text())[:1]))
    assert load_checkpoint(tmp_path, refuse).step == 1


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    write(tmp_path, 1)
    import errno
    from pathlib import Path

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="disk is full"):
            write(tmp_path, 2)
    assert load_checkpoint(tmp_path, refuse).step == 1
    assert not list(tmp_path.glob(".*tmp*"))


@pytest.mark.parametrize(
    "entry",
    [{"step": 3}, {"step": 1e999, "file": "a", "sha256": ""}, {"step": "3"}, 3, None,
     {"step": 3, "file": None, "sha256": ""}, {"step": 3, "file": "a", "sha256": "", "state": 1},
     {"step": 3, "file": "step-00000002.safetensors", "sha256": ""}],
    ids=str,
)  # fmt: skip
def test_an_entry_that_names_no_file_does_not_hide_a_sound_checkpoint(tmp_path, entry):
    write(tmp_path, 1, 2)
    index = tmp_path / "index.json"
    index.write_text(json.dumps([*json.loads(index.read_text()), entry]))
    assert load_checkpoint(tmp_path, refuse).step == 2
    write(tmp_path, 3)
    assert load_checkpoint(tmp_path, refuse).step == 3


def test_a_metrics_line_that_was_cut_is_passed_over(tmp_path):
    from blsgan.training.run_folder import metrics_until

    path = tmp_path / "metrics.jsonl"
    sound = [json.dumps({"step": step, "loss": 0.5}) for step in (10, 20, 30)]
    damaged = ['{"step": 15, "lo', "null", "[]", '{"step": 1e999}', "[" * 100_000, "{}", "\x00"]
    path.write_text("\n".join([*damaged, *sound, '{"step": 40']))
    assert [line["step"] for line in metrics_until(path, 20)] == [10, 20]


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_description_of_a_run_is_named(tmp_path, text):
    from blsgan.training.run_folder import note_precision

    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(InputError, match=r"environment\.json: "):
        note_precision(tmp_path, "float32", 3, refuse)
