"""YAML as a configuration needs it: texts, numbers, switches, lists and keys, of bounded size.

YAML can say more: dates, sets, bytes, a list that holds itself, and in a few lines of aliases a
structure that fills the memory. None of it is a configuration, so it is refused before it is built.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_NODES = 5000
"""Values of a configuration, with what aliases repeat; the longest preset has about 150."""

MAX_DEPTH = 32
_MAX_BYTES = 2**20
_MAX_INTEGER = 2**63
_SHOWN = 60


def read_plain(text: str) -> Any:
    """The value that ``text`` is, of JSON's types; what an alias repeats is there twice.

    Raises:
        ValueError: it is no YAML, or says what no configuration does; the message is one line.
    """
    if len(text) > _MAX_BYTES:
        raise ValueError(f"it has {len(text)} characters, more than {_MAX_BYTES}")
    try:
        _check_size(text)
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{error.problem or error.context}{line}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    except ValueError as error:
        if "digits" in str(error):  # Python's limit, which tells of a function to call
            raise ValueError("it has a number of too many digits") from error
        raise
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return _plain(value, ())


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own loader takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key '{key.value[:_SHOWN]}' is given twice",
                        problem_mark=key.start_mark,
                    )
                seen.add((key.tag, key.value))
        return node


def _check_size(text: str) -> None:
    """Counts nodes from the stream of events, before any is built."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"*{event.anchor} stands for nothing, or for what holds itself")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.ScalarEvent):
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            else:
                opened.append((event.anchor, count - 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        if len(opened) > MAX_DEPTH:
            raise ValueError("it is nested too deep")
        if count > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} values")


def _plain(value: Any, place: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{_named(place)}a key is {shown(key)}, not a text")
        return {key: _plain(inner, (*place, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, (*place, str(index))) for index, inner in enumerate(value)]
    if isinstance(value, int) and not -_MAX_INTEGER <= value < _MAX_INTEGER:
        raise ValueError(f"{_named(place)}a number of {value.bit_length()} bits is too large")
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(
            f"{_named(place)}the value is a {type(value).__name__}; give a text, a number, true, "
            "false, null, a list or keys"
        )
    return value


def _named(place: tuple[str, ...]) -> str:
    return f"key '{'.'.join(place)}': " if place else ""


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
