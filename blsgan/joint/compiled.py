"""``blsgan._native``, the compiled half without torch, or one sentence where it does not load.

Modules that a report of a broken installation needs import it where they use it.
"""

from __future__ import annotations

from blsgan.errors import BackendError

try:
    import blsgan._native as _native

    _native.Window  # noqa: B018 - what an earlier version left in a source tree has none
except (ImportError, AttributeError) as error:  # pragma: no cover - depends on the installation
    raise BackendError(
        f"blsgan's compiled NumPy kernels do not load ({error}): reinstall blsgan with "
        "`pip install .`"
    ) from error

__all__ = ["_native"]
