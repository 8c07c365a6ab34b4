"""``blsgan._native``, the compiled half without torch, or one sentence where it does not load."""

from __future__ import annotations

from blsgan.errors import BackendError

try:
    import blsgan._native as _native
except ImportError as error:  # pragma: no cover - depends on the installation
    raise BackendError(
        f"blsgan's compiled NumPy kernels do not load ({error}): reinstall blsgan with "
        "`pip install .`"
    ) from error

__all__ = ["_native"]
