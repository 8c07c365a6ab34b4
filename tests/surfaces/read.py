"""Print the names that a package of a GPU's runtime has, as JSON: what our fakes are held to.

    python tests/surfaces/read.py MODULE [OPTIONS-FILE PATTERN] > tests/surfaces/NAME.json

MODULE is imported, so it must be installed. TensorRT's bindings (PyPI: tensorrt-cu13-bindings,
module tensorrt_bindings) also import without TensorRT: beside empty libraries of the names that
``ldd`` says are not found, with a function of each name that ``nm -D --undefined-only`` shows.
OPTIONS-FILE is a library or a header, in which every match of PATTERN is an option.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path

# What blsgan uses, and what lies beside it in the same classes.
CLASSES = (
    *("BuilderFlag", "ComputeCapability", "HardwareCompatibilityLevel", "MemoryPoolType"),
    *("NetworkDefinitionCreationFlag", "ProfilingVerbosity", "TensorIOMode"),
    *("Builder", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILogger"),
    *("INetworkDefinition", "IOptimizationProfile", "IRuntimeCache", "IRuntimeConfig"),
    *("ITimingCache", "OnnxParser", "ParserError", "Runtime"),
    *("InferenceSession", "OrtEpAssignedNode", "OrtEpAssignedSubgraph", "OrtEpDevice"),
    *("SessionOptions",),
)


def surface(module, options: Path | None, pattern: str) -> dict:
    """``names`` of the module, ``classes`` with their attributes (of an enum: its members in their
    order), and ``options``; each in one line."""
    classes = {}
    for name in CLASSES:
        found = getattr(module, name, None)
        if inspect.isclass(found):
            members = getattr(found, "__members__", None)
            listed = (
                sorted(members, key=lambda member: int(members[member]))
                if members
                else [attribute for attribute in dir(found) if not attribute.startswith("_")]
            )
            classes[name] = " ".join(listed)
    names = set()
    if options is not None:
        names = {found.decode() for found in re.findall(pattern.encode(), options.read_bytes())}
    return {
        "module": module.__name__,
        "version": module.__version__,
        "names": " ".join(name for name in dir(module) if not name.startswith("_")),
        "classes": classes,
        "options": " ".join(sorted(names)),
    }


if __name__ == "__main__":
    module, *rest = sys.argv[1:]
    path, pattern = (Path(rest[0]), rest[1]) if rest else (None, "")
    json.dump(surface(importlib.import_module(module), path, pattern), sys.stdout, indent=1)
    print()
