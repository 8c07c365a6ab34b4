"""The hand's joints and the landmarks that find them: names, fingers, first sizes.

Fingers are numbered 1 (thumb) to 5, joints named after the bones that meet: MCP, PIP and DIP, the
thumb's IP. ``mcp3`` is a joint and a landmark: the point between the two bones.
"""

from __future__ import annotations

from typing import Literal

Side = Literal["left", "right"]

JOINTS = ("mcp1", "mcp2", "mcp3", "mcp4", "mcp5", "ip1", "pip2", "pip3", "pip4", "pip5")
"""The joints that are taken apart, in the order in which they are reported."""

PROMISED = JOINTS[:5]
"""Those that the segmenter was trained on; the others are experimental."""

LANDMARKS = (
    *JOINTS,
    *("dip2", "dip3", "dip4", "dip5"),
    *("tip1", "tip2", "tip3", "tip4", "tip5"),
    *("cmc1", "cmc2", "cmc3", "cmc4", "cmc5"),
    *("radius_styloid", "ulna_styloid"),
)
"""What the locator's network finds, in the order of its channels."""

BEYOND = {
    **{f"mcp{finger}": f"pip{finger}" for finger in range(2, 6)},
    **{f"pip{finger}": f"dip{finger}" for finger in range(2, 6)},
    "mcp1": "ip1",
    "ip1": "tip1",
}
"""The landmark beyond a joint: its axis runs there."""

BELOW = {
    **{f"mcp{finger}": f"cmc{finger}" for finger in range(1, 6)},
    **{f"pip{finger}": f"mcp{finger}" for finger in range(2, 6)},
    "ip1": "mcp1",
}
"""The landmark on the wrist's side of a joint: its axis comes from there."""

WIDTH_SHARES = {
    "mcp1": 0.25,
    "mcp2": 0.29,
    "mcp3": 0.30,
    "mcp4": 0.27,
    "mcp5": 0.23,
    "ip1": 0.23,
    "pip2": 0.24,
    "pip3": 0.25,
    "pip4": 0.23,
    "pip5": 0.20,
}
"""About how wide the bones of a joint are, over the distance between MCP 3 and PIP 3 (mature hands
of many devices; the design's figures for MCP, measured the same way for the others)."""


def finger_of(joint: str) -> int:
    """1 (thumb) to 5."""
    return int(joint[-1])


def title(joint: str) -> str:
    """As people write it: ``MCP 3``."""
    return f"{joint[:-1].upper()} {joint[-1]}"
