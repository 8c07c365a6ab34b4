"""A configuration's YAML: plain values alone, and nothing that a few lines blow up."""

from __future__ import annotations

import re
import time

import pytest

from blsgan.errors import UsageError
from blsgan.training.config import load_config
from blsgan.training.plain_yaml import MAX_NODES, read_plain

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_plain_values_and_aliases():
    text = "a: &a {x: 1, y: [1.5, true, null]}\nb: *a\nc: {<<: *a, x: text}\n"
    value = read_plain(text)
    shared = {"x": 1, "y": [1.5, True, None]}
    assert value == {"a": shared, "b": shared, "c": {"x": "text", "y": [1.5, True, None]}}
    assert read_plain("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n")["c"] == {"x": 3}
    value["a"]["x"] = 2  # a change of one is none of the other
    assert value["b"]["x"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, f"more than {MAX_NODES} values"),
        ("&a [*a]", "what holds itself"),
        ("a: &a {b: *a}", "what holds itself"),
        ("[" * 5000, "nested too deep"),
        ("{a: " * 2000, "nested too deep"),
        ("seed: 2020-01-01", "key 'seed': the value is a date"),
        ("a: {b: [!!set {x}]}", "key 'a.b.0': the value is a set"),
        ("name: !!binary aGVsbG8=", "the value is a bytes"),
        ("1: 2", "a key is 1, not a text"),
        ("? [a]\n: b", "unhashable key in line 1"),
        ("seed: " + "9" * 6000, "too many digits"),
        ("seed: 0x" + "f" * 6000, "24000 bits is too large"),
        ("a: !!python/object:os.system ls", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "found another document in line 2"),
        ("#" * 2**21, "more than 1048576"),
        ("a: {b: 1, c: 2, 'b': 3}", "key 'b' is given twice in line 1"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_configuration_is_refused_at_once(text, said):
    began = time.process_time()
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        read_plain(text)
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "validate_every=true",
            "key 'validate_every': input should be another value than true or false",
        ),
        ("optimiser.learning_rate=.inf", "finite number"),
        ("seed=&a [*a]", "is not YAML that can be used"),
        ("name=" + "x" * 400, "key 'name'"),
        ("data.crop=[1600000, 16]", "up to 4096"),
        ("stages.².steps=1", "'²' is not one of 0 to 0"),
    ],
)
def test_a_change_of_an_odd_type(change, said):
    with pytest.raises(UsageError) as caught:
        load_config("lite", [change])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400
