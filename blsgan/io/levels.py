"""How many grey levels a file's integers span, when the container is wider than the picture."""

from __future__ import annotations

_DEPTHS = (8, 10, 12, 14, 16)


def guess_bits(highest: int, container: int) -> int:
    """The smallest usual depth (8, 10, 12, 14, 16) that holds ``highest``, at most ``container``.

    Detectors deliver 10 to 14 bits in 16-bit files. Divided by 65535 such a radiograph would be
    black, and the physics (1 - I is a transmission) meaningless.
    """
    for bits in _DEPTHS:
        if bits >= container:
            break
        if highest < 2**bits:
            return bits
    return container
