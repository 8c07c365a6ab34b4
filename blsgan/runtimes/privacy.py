"""Nothing that blsgan loads reports to its maker.

:func:`stop_telemetry` runs when the package is imported, that is before any of its modules can load
a runtime, in the process of a command, of a worker and of a user's own program alike.
``csrc/runner/onnxruntime.cpp`` does the same for the C++ runner.
"""

from __future__ import annotations

import os
import sys
from typing import cast


def stop_telemetry() -> None:
    """Switch off what the runtimes would send, for this process and those that it starts.

    ONNX Runtime (from 1.29 on) and Ray read a variable, when they are loaded. OpenVINO knows no
    such switch: it sends what its package ``openvino_telemetry`` builds, and does without where
    that cannot be imported, which is how Python reads None in ``sys.modules``.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cast("dict[str, object]", sys.modules).setdefault("openvino_telemetry", None)
