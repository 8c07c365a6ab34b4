"""The report: each "cannot" has its reason, and nothing that fails in a probe fails the report."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from blsgan import doctor
from blsgan.cli.doctor import command as doctor_command
from blsgan.cli.info import command as info_command
from blsgan.doctor import Check, Report, _Probe
from blsgan.runtimes import session
from blsgan.tasks import task


def report(**changes) -> Report:
    """A report of an installation where everything works, with ``changes``."""
    working = {
        "versions": {"blsgan": "0.1.0", "openvino": None},
        "system": {"python": "3.11.7", "platform": "Linux", "package": "/site/blsgan"},
        "build": {"version": "0.1.0"},
        "weights": {
            "name": "lite",
            "files": [
                {
                    "path": "/w/lite.onnx",
                    "sha256": "ab" * 32,
                    "card_sha256": "ab" * 32,
                    "reason": None,
                }
            ],
            "reason": None,
        },
        "torch": {"installed": False},
        "compiled": [Check("numpy kernels", True, "x86-64-v3")],
        "backends": [
            Check("onnx", True, "1.20"),
            Check("torch", False, reason="torch is not installed"),
        ],
    }
    return Report(**{**working, **changes})


class TestProbe:
    def test_json_lines_are_read_and_a_librarys_greeting_is_not(self):
        probe = doctor._probe("print('Hello'); print('{\"a\": 1}'); print('[2]')")
        assert probe == _Probe([{"a": 1}], None)

    def test_an_exception_becomes_its_sentence(self):
        probe = doctor._probe("print('{}'); raise ValueError('the disk is full')")
        assert probe == _Probe([{}], "the disk is full")

    def test_a_crash_is_named(self):
        probe = doctor._probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        assert probe == _Probe([], "it crashed (signal 11)")

    def test_a_hang_ends(self):
        probe = doctor._probe("import time; time.sleep(60)", timeout_s=0.5)
        assert probe == _Probe([], "it did not answer within 0.5 s")

    def test_silence_is_not_success(self):
        assert doctor._probe("pass") == _Probe([], "it printed nothing")


GPU = {
    "version": "2.13.0+cu130",
    "cuda": "13.0",
    "devices": [{"name": "H100", "capability": "9.0"}],
}


class TestTorch:
    def checks(self, probe, **build):
        build = {
            "torch_abi": "2.11",
            "cuda_architectures": "8.0;9.0+PTX",
            "cuda_reason": "",
            **build,
        }
        return {check.name: check for check in doctor._torch(probe, build)[1]}

    def test_not_installed_names_the_extra(self):
        checks = self.checks(None)
        assert not any(check.works for check in checks.values())
        assert "pip install 'blsgan[train]'" in checks["torch ops, cpu"].reason

    def test_installed_but_broken_gives_the_cause(self):
        checks = self.checks(_Probe([], "libcudart.so.13: cannot open shared object file"))
        assert "does not load: libcudart.so.13" in checks["torch ops, cpu"].reason

    def test_ops_missing_gives_the_cause(self):
        facts = {"version": "2.13.0+cpu", "cuda": None, "devices": []}
        checks = self.checks(_Probe([facts], "the compiled ops are missing"))
        assert checks["torch ops, cpu"].reason == "the compiled ops are missing"

    def test_cuda_that_was_not_compiled_repeats_the_builds_reason(self):
        facts = {"version": "2.13.0+cpu", "cuda": None, "devices": []}
        probe = _Probe([facts, {"device": "cpu", "reason": None}], None)
        checks = self.checks(
            probe, cuda_architectures="", cuda_reason="no nvcc on PATH or in CUDA_HOME"
        )
        assert checks["torch ops, cpu"].works
        assert "no nvcc on PATH" in checks["torch ops, cuda"].reason

    def test_compiled_but_torch_has_no_cuda(self):
        facts = {"version": "2.13.0+cpu", "cuda": None, "devices": []}
        checks = self.checks(_Probe([facts, {"device": "cpu", "reason": None}], None))
        assert checks["torch ops, cuda"].reason == "torch 2.13.0+cpu has no CUDA"
        assert "8.0, 9.0+PTX" in checks["torch ops, cuda"].detail

    def test_no_gpu_to_be_seen(self):
        facts = {**GPU, "devices": []}
        checks = self.checks(_Probe([facts, {"device": "cpu", "reason": None}], None))
        assert "no GPU" in checks["torch ops, cuda"].reason

    @pytest.mark.parametrize("outcome", [None, "no kernel image is available for execution"])
    def test_each_gpu_is_tried(self, outcome):
        lines = [{"device": "cpu", "reason": None}, {"device": "cuda:0", "reason": outcome}]
        checks = self.checks(_Probe([GPU, *lines], None))
        assert checks["torch ops, cuda:0"].works == (outcome is None)
        assert checks["torch ops, cuda:0"].reason == outcome
        assert "H100" in checks["torch ops, cuda:0"].detail

    def test_a_gpu_that_crashes_torch_is_named_as_such(self):
        probe = _Probe([GPU, {"device": "cpu", "reason": None}], "it crashed (signal 11)")
        assert self.checks(probe)["torch ops, cuda:0"].reason == "it crashed (signal 11)"


class TestWeights:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(task, "WEIGHTS_FOLDER", tmp_path)
        for name in ("lite", "segmenter", "locator"):
            hashes = {}
            for file in (f"{name}.onnx", f"{name}.safetensors"):
                (tmp_path / file).write_bytes(b"network")
                hashes[file] = hashlib.sha256(b"network").hexdigest()
            card = {"name": name, "architecture": name, "sha256": hashes}
            (tmp_path / f"{name}.json").write_text(json.dumps(card))
        return tmp_path

    def test_what_the_card_says(self, folder):
        facts, notes = doctor._weights()
        assert facts["reason"] is None
        assert [file["sha256"] == file["card_sha256"] for file in facts["files"]] == [True] * 6
        assert notes == []

    def test_a_damaged_file_is_named(self, folder):
        (folder / "lite.safetensors").write_bytes(b"tensorz")
        facts, _ = doctor._weights()
        assert "lite.safetensors is damaged" in facts["reason"]
        assert [file["reason"] is None for file in facts["files"]] == [True, False] + [True] * 4

    def test_a_card_without_hashes_is_noted(self, folder):
        (folder / "lite.json").write_text(json.dumps({"name": "lite"}))
        facts, notes = doctor._weights()
        assert facts["reason"] is None
        assert len(notes) == 2
        assert "no hash" in notes[0]

    def test_separation_works_without_a_whole_segmenter(self, folder):
        (folder / "segmenter.onnx").write_bytes(b"netword")
        facts, notes = doctor._weights()
        assert facts["reason"] is None
        assert "masks cannot be predicted" in notes[0]
        (folder / "segmenter.json").unlink()
        facts, notes = doctor._weights()
        assert facts["reason"] is None
        assert len(facts["files"]) == 4
        assert "masks cannot be predicted" in notes[0]
        (folder / "locator.json").unlink()
        assert "hands cannot be found" in doctor._weights()[1][1]

    def test_no_weights_at_all(self, folder):
        (folder / "lite.json").unlink()
        facts, _ = doctor._weights()
        assert facts["files"] == []
        assert "lite" in facts["reason"]


class TestKernels:
    def test_as_installed(self):
        check, build = doctor._kernels()
        assert check.works, check.reason
        assert check.detail == build["cpu_dispatch"]
        facts = {
            "version",
            "compiler",
            "cxx_flags",
            "cuda_architectures",
            "cuda_reason",
            "torch_abi",
        }
        assert facts <= set(build)
        assert build["cuda_architectures"] or build["cuda_reason"], "no CUDA and no reason for it"

    def test_missing(self, monkeypatch):
        import blsgan.ops

        monkeypatch.delattr(blsgan.ops, "native", raising=False)
        monkeypatch.setitem(sys.modules, "blsgan.ops.native", None)
        check, build = doctor._kernels()
        assert not check.works
        assert check.reason
        assert build == {}

    def test_of_another_version(self, monkeypatch):
        from blsgan.ops import native

        monkeypatch.setattr(
            native, "build_info", lambda: {"version": "0.0.9", "cpu_dispatch": "default"}
        )
        check, _ = doctor._kernels()
        assert not check.works
        assert "compiled for blsgan 0.0.9" in check.reason


class TestBackends:
    def test_one_that_is_not_installed(self, monkeypatch):
        monkeypatch.setattr(session, "available", lambda: {"openvino": "openvino is not installed"})
        assert doctor._separating_backend("openvino") == Check(
            "openvino", False, reason="openvino is not installed"
        )

    def test_one_that_does_not_invert_is_not_called_working(self, monkeypatch):
        monkeypatch.setattr(session, "available", lambda: {"onnx": None})
        answer = _Probe([{"version": "1.20", "error": float("nan")}], None)
        monkeypatch.setattr(doctor, "_probe", lambda *_: answer)
        assert not doctor._separating_backend("onnx").works

    def test_onnx_separates_here_with_the_shipped_weights(self):
        check = doctor._separating_backend("onnx")
        assert check.works, check.reason


class TestEngines:
    @pytest.fixture
    def checks(self, monkeypatch):
        """The checks where the library is there and the probes of it and of the GPU say this."""

        def collect(library, gpu, reason=None):
            answers = {doctor._ENGINE_LIBRARY: library, doctor._GPU: gpu}
            monkeypatch.setattr(doctor, "_probe", lambda code, *_: answers[code])
            reasons = dict.fromkeys(session.ENGINES, reason)
            monkeypatch.setattr(session, "available", lambda: reasons)
            monkeypatch.setattr(doctor.libraries, "missing", lambda name: None)
            return doctor._engines()[1]

        return collect

    RTX = _Probe([{"version": "1.7.1", "capabilities": ["7.5", "12.0"]}], None)

    def test_one_that_is_not_installed(self, monkeypatch):
        monkeypatch.setattr(doctor.libraries, "find_spec", lambda module: None)
        for check, source in zip(doctor._engines(), ("JetPack", "pip install"), strict=True):
            assert not check.works
            assert source in check.reason

    def test_one_that_can_build_and_not_run(self, checks):
        check = checks(self.RTX, _Probe([], "no"), reason="there is no NVIDIA GPU")
        assert (check.works, check.reason) == (False, "there is no NVIDIA GPU")
        assert check.detail == "1.7.1, builds engines for 7.5, 12.0 without a GPU"

    def test_one_that_runs(self, checks):
        check = checks(self.RTX, _Probe([{"name": "L4", "compute_capability": "8.9"}], None))
        assert check.works
        assert check.detail.endswith("runs engines on L4 (8.9)")

    def test_a_gpu_that_does_not_answer(self, checks):
        check = checks(self.RTX, _Probe([], "the driver is too old"))
        assert (check.works, check.reason) == (False, "the driver is too old")

    def test_one_that_does_not_load(self, checks):
        check = checks(_Probe([], "libcudart.so.13: cannot open"), _Probe([], None))
        assert "tensorrt_rtx does not load: libcudart.so.13" in check.reason


def test_a_tensorrt_alone_does_not_separate():
    assert not report(backends=[Check("tensorrt", True, "11.0")]).can_separate


def test_separation_needs_kernels_and_a_backend():
    assert report().can_separate
    assert not report(compiled=[Check("numpy kernels", False, reason="gone")]).can_separate
    assert not report(backends=[Check("onnx", False, reason="gone")]).can_separate


def test_doctor_ends_with_a_verdict(monkeypatch):
    monkeypatch.setattr("blsgan.cli.doctor.collect", report)
    result = CliRunner().invoke(doctor_command)
    assert result.exit_code == 0
    assert "torch is not installed" in result.output
    assert result.output.splitlines()[-1] == "blsgan separate works here, on onnx."


def test_doctor_fails_with_the_reason_where_separating_fails(monkeypatch):
    broken = report(compiled=[Check("numpy kernels", False, reason="_native.so is missing")])
    monkeypatch.setattr("blsgan.cli.doctor.collect", lambda: broken)
    result = CliRunner().invoke(doctor_command)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].endswith("_native.so is missing.")


def test_doctor_says_that_the_compiled_half_is_missing():
    code = (
        "import sys; sys.modules['blsgan._native'] = None;"
        "from blsgan.cli import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "lite.onnx" in done.stdout
    assert "compiled NumPy kernels do not load" in done.stdout.splitlines()[-1]


def test_info_prints_json_and_judges_nothing(monkeypatch):
    broken = report(backends=[Check("onnx", False, reason="gone")])
    monkeypatch.setattr("blsgan.cli.info.collect", lambda: broken)
    result = CliRunner().invoke(info_command, ["--json"])
    assert result.exit_code == 0
    facts = json.loads(result.output)
    assert facts["can_separate"] is False
    assert facts["backends"] == [{"name": "onnx", "works": False, "detail": "", "reason": "gone"}]
    assert CliRunner().invoke(info_command).exit_code == 0


def test_doctor_and_info_print_one_collection(monkeypatch):
    shown = []
    for name, command in (("doctor", doctor_command), ("info", info_command)):
        monkeypatch.setattr(f"blsgan.cli.{name}.collect", report)
        said = CliRunner().invoke(command).output
        first, last = said.index("Compiled"), said.find("blsgan separate works")
        shown.append(said[first : None if last < 0 else last])
        assert json.loads(CliRunner().invoke(command, ["--json"]).output) == report().as_dict()
    assert shown[0] == shown[1]


def test_the_real_report_has_a_reason_for_every_cannot_and_imports_no_torch():
    code = (
        "import json, sys; from blsgan.doctor import collect; facts = collect().as_dict();"
        "print(json.dumps([facts, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts, torch_imported = json.loads(done.stdout)
    assert not torch_imported
    checks = facts["compiled"] + facts["backends"]
    assert {
        "numpy kernels",
        "torch ops, cpu",
        "onnx",
        "openvino",
        "torch",
        "tensorrt",
        "tensorrt-rtx",
    } <= {check["name"] for check in checks}
    assert any(check["name"].startswith("torch ops, cuda") for check in checks)
    for check in checks:
        assert check["works"] == (check["reason"] is None), check


def test_a_long_name_and_its_value_do_not_run_together(capsys):
    from blsgan.cli.info import _table

    _table("Weights", {"/a/path/that/is/longer/than/the/column.onnx": "SHA-256 ab", "short": "c"})
    assert "column.onnx SHA-256 ab" in capsys.readouterr().out


def test_what_strangers_may_send_tells_nothing_of_them(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.platform, "node", lambda: "ward7.clinic.example")
    monkeypatch.setattr(doctor, "_user", lambda: "mueller")
    monkeypatch.setenv("HOME", "/home/Eva Schmidt")
    monkeypatch.setattr(doctor, "_first_line", lambda path: "NVIDIA Jetson Orin Nano")
    full = report(
        system={
            "python": "3.11.7", "platform": "Linux-ward7", "package": "/home/mueller/blsgan",
            "machine": "aarch64", "cores": 6, "executable": "/home/mueller/bin/python",
        },
        build={"version": "0.1.0", "compiler": "GCC 12", "cuda_reason": "/opt/a b/nvcc: no"},
        backends=[
            Check("onnx", True, "1.20 of ward7"),
            Check("torch", False, reason="(/home/mueller/x.so: cannot open), (none of /dev/dxg)"),
            Check("openvino", False, reason="'/home/Eva Schmidt/e v/x.so' of ward7.clinic.example"),
        ],
        notes=["/home/mueller/w/lite.onnx has no hash", "two are installed"],
    )  # fmt: skip
    monkeypatch.setattr("blsgan.cli.doctor.collect", lambda: full)
    target = tmp_path / "mine.json"
    done = CliRunner().invoke(doctor_command, ["--json", "--submit", str(target)])
    assert json.loads(done.stdout)["system"]["package"] == "/home/mueller/blsgan"  # as ever
    text = target.read_text()
    for secret in ("mueller", "ward7", "clinic", "Schmidt", "x.so", "/home", "/opt", "nvcc", "/w/"):
        assert secret not in text
    facts = json.loads(text)
    assert facts["system"]["board"] == "NVIDIA Jetson Orin Nano"
    assert set(facts["system"]) == {
        "python", "machine", "cores", "kernel", "memory_gb", "board", "jetson",
    }  # fmt: skip
    assert facts["weights"]["files"][0]["path"] == "lite.onnx"
    reasons = [check["reason"] for check in facts["backends"]]
    assert reasons[:2] == [None, "(<path>: cannot open), (none of /dev/dxg)"]
    assert facts["notes"] == ["two are installed"]


def test_two_packages_of_onnx_runtime_are_one_too_many(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "1.31.1")
    (note,) = doctor._two_of_one()
    assert note.startswith("onnxruntime and onnxruntime-gpu are both installed, and the later one")
    monkeypatch.setattr(doctor, "_version", {"onnxruntime": "1.32.0"}.get)
    assert doctor._two_of_one() == []


def test_each_gpu_that_is_not_there_has_its_reason(monkeypatch):
    monkeypatch.setattr(doctor, "missing", lambda device: f"no {device}")
    assert [doctor._separating_on_gpu(device).reason for device in doctor.PROVIDERS] == [
        "no cuda", "no tensorrt", "no tensorrt-rtx",
    ]  # fmt: skip
    monkeypatch.setattr(doctor, "missing", lambda device: None)
    check = doctor._separating_on_gpu("cuda")
    assert (check.name, check.works) == ("onnx, cuda", False)
    assert check.reason.startswith("device cuda:0 cannot be used: ")
