"""Loading the compiled ops: what cannot be loaded is named with the way out."""

import pytest
import torch

from blsgan.errors import BackendError
from blsgan.ops.fused import _library


def test_a_torch_that_is_too_old(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(BackendError, match=r"torch 2\.11 or newer, and this is 2\.9\.1\+cpu: pip"):
        _library._load()


def test_a_library_that_is_missing_or_damaged(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "LIBRARY", tmp_path / "_ops.so")
    with pytest.raises(BackendError, match="does not exist"):
        _library._load()
    (tmp_path / "_ops.so").write_bytes(b"\x7fELF")
    with pytest.raises(BackendError, match="do not load under torch"):
        _library._load()
