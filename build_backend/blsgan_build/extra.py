"""Print the requirements of one extra of the installed blsgan: ``python extra.py test``."""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires


def requirements(extra: str) -> list[str]:
    """Requirement strings of ``extra`` without their marker.

    Raises:
        SystemExit: the installed package has no such extra.
    """
    marked = re.compile(rf"""\s*;\s*extra == ['"]{re.escape(extra)}['"]$""")
    found = [marked.sub("", line) for line in requires("blsgan") or [] if marked.search(line)]
    if not found:
        raise SystemExit(f"The installed blsgan has no extra '{extra}': install it again.")
    return found


if __name__ == "__main__":
    print(" ".join(requirement.replace(" ", "") for requirement in requirements(sys.argv[1])))
