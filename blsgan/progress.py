"""How long work says how far it is; who shows it, and where, it does not know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """Hands on ``items``, of which there are ``total``, and may show how many are done.

    ``label`` says at what; without ``total`` the items must have a length.
    """

    def __call__(
        self, items: Iterable[Item], label: str, total: int | None = None
    ) -> Iterable[Item]: ...


def silent(items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
    """A :class:`Track` that shows nothing."""
    return items
