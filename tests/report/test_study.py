"""A study shows both kinds alike, keeps its truth to the key, and scores what readers say."""

import base64
import io
import json
import os
import re
import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from blsgan.cli import main
from blsgan.errors import InputError
from blsgan.records.reader_study import ScoreRecord
from blsgan.report.scoring import (
    Answer,
    Key,
    Reading,
    fleiss_kappa,
    markdown,
    read_answers,
    read_key,
    score,
    wilson,
)


@pytest.fixture(scope="session")
def both_kinds(tmp_path_factory, separated):
    """Three results without overlap and three with one."""
    folder = tmp_path_factory.mktemp("kinds")
    cases = {f"{seed}": (seed, 5.0 if seed % 2 else -9.0) for seed in range(6)}
    return separated(folder, cases)


def build(folder, output, *extra):
    arguments = [str(folder), "-o", str(output), "--min-overlap", "30", *map(str, extra)]
    return main(["reader-study", "build", *arguments])


@pytest.fixture(scope="module")
def study(both_kinds, tmp_path_factory):
    page = tmp_path_factory.mktemp("study") / "study.html"
    assert build(both_kinds, page, "--count", 12) == 0
    return page, read_key(page.with_name("study-key.json"))


def pictures(page):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    return [base64.b64decode(text) for text in found]


def test_half_is_real_and_bones_are_as_frequent_in_both(study):
    _, key = study
    counts = Counter((key.truth[item], key.bone[item]) for item in key.truth)
    assert counts == {
        (truth, bone): 3 for truth in ("real", "generated") for bone in ("upper", "lower")
    }
    assert sorted(key.truth) == list(range(1, 13))
    assert list(key.truth.values()) != sorted(key.truth.values())


def test_nothing_in_the_page_tells_the_truth(study):
    page, _ = study
    files = pictures(page)
    assert len(files) == 12
    assert len({len(file) for file in files}) == 1
    for file in files:
        chunks, position = [], 8
        while position < len(file):
            (length,) = struct.unpack_from(">I", file, position)
            chunks.append(file[position + 4 : position + 8])
            position += 12 + length
        assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    headers = {file[8:33] for file in files}
    assert len(headers) == 1
    tags = re.findall(r'<img id="item-\d+"[^>]*?alt="Bone \d+" src=', page.read_text())
    assert len({re.sub(r"\d+", "", tag) for tag in tags}) == 1
    content = json.loads(page.with_name("study-key.json").read_text())
    for item in content["items"]:
        assert item["record_sha256"] not in page.read_text()
    assert sorted(os.listdir(page.parent)) == ["study-key.json", "study.html"]


def test_real_bones_are_the_radiograph_and_both_kinds_look_alike_in_number(study):
    """Brightness and covered area do not part the kinds: their ranges overlap."""
    page, key = study
    figures = {"real": [], "generated": []}
    for item, file in enumerate(pictures(page), start=1):
        with Image.open(io.BytesIO(file)) as picture:
            grey = np.asarray(picture)
        assert grey.max() == 255
        figures[key.truth[item]].append((grey[grey > 0].mean(), (grey > 0).mean()))
    real, generated = (np.array(figures[kind]) for kind in ("real", "generated"))
    assert (real.min(axis=0) < generated.max(axis=0)).all()
    assert (generated.min(axis=0) < real.max(axis=0)).all()


def test_every_bone_ends_at_the_same_distance_from_the_joint(study):
    """Where the shaft leaves the radiograph must not tell one kind from the other."""
    page, key = study
    lengths = []
    for item, file in enumerate(pictures(page), start=1):
        with Image.open(io.BytesIO(file)) as picture:
            rows = np.flatnonzero((np.asarray(picture) > 0).any(axis=1))
        lengths.append(rows[-1] - rows[0] + 1)
        surface = rows[-1] if key.bone[item] == "upper" else 319 - rows[0]
        assert surface == pytest.approx(0.75 * 320, abs=10)  # two pixels of the phantom
    assert max(lengths) - min(lengths) <= 10


def test_the_seed_decides(both_kinds, study, tmp_path):
    page, _ = study
    assert build(both_kinds, tmp_path / "study.html", "--count", 12) == 0
    for name in ("study.html", "study-key.json"):
        assert (tmp_path / name).read_bytes() == (page.parent / name).read_bytes()
    assert build(both_kinds, tmp_path / "other.html", "--count", 12, "--seed", 1) == 0
    assert (tmp_path / "other.html").read_bytes() != page.read_bytes()


def test_refusals_to_build(both_kinds, tmp_path, capsys):
    assert build(both_kinds, tmp_path / "s.html", "--count", 10) == 2
    assert build(both_kinds, tmp_path / "s.pdf", "--count", 8) == 2
    assert build(both_kinds, tmp_path / "s.html", "--count", 16) == 1
    assert "16 pictures need 4 of each" in capsys.readouterr().err
    assert build(tmp_path, tmp_path / "s.html", "--count", 4) == 1
    (tmp_path / "s-key.json").write_text("another study")
    assert build(both_kinds, tmp_path / "s.html", "--count", 8) == 2
    assert "the truth of another study" in capsys.readouterr().err
    (tmp_path / "s-key.json").unlink()
    assert os.listdir(tmp_path) == []


# ---- scoring ----

KEY = Key(
    "abc",
    {1: "real", 2: "real", 3: "generated", 4: "generated"},
    {1: "upper", 2: "lower", 3: "upper", 4: "lower"},
)


def reading(reader, answers, grades=(4, 4, 2, 2), group=""):
    kinds = {"r": "real", "g": "generated"}
    given = {
        item: Answer(kinds[letter], grade)
        for item, (letter, grade) in enumerate(zip(answers, grades, strict=True), start=1)
        if letter in kinds
    }
    return Reading(reader, group, given, 4)


def test_accuracy_sensitivity_specificity():
    found = score(KEY, [reading("A", "rggr")])
    accuracy = found.readers["A"]
    assert (accuracy.correct.hits, accuracy.correct.count) == (2, 4)
    assert accuracy.specificity.share == 0.5
    assert accuracy.sensitivity.share == 0.5
    assert accuracy.p_chance == 1.0
    perfect = score(KEY, [reading("A", "rrgg")]).pooled
    assert perfect.correct.share == 1.0
    assert perfect.p_chance == pytest.approx(2 * 0.5**4)


def test_several_readers_of_one_picture_are_not_tested_as_if_independent():
    found = score(KEY, [reading("A", "rrgg"), reading("B", "rrgg")])
    assert found.pooled.p_chance is None
    assert found.readers["B"].p_chance == pytest.approx(2 * 0.5**4)


def test_sensitivity_is_of_generated_pictures():
    accuracy = score(KEY, [reading("A", "gggg")]).pooled
    assert accuracy.sensitivity.share == 1.0
    assert accuracy.specificity.share == 0.0


def test_wilson_against_the_published_example():
    """81 of 263: Newcombe, Statistics in Medicine 1998, method 3: 0.2553 to 0.3662."""
    rate = wilson(81, 263)
    assert (rate.low, rate.high) == (
        pytest.approx(0.2553, abs=5e-5),
        pytest.approx(0.3662, abs=5e-5),
    )


def test_fleiss_kappa_against_the_textbook_example():
    """10 subjects, 14 raters, 5 categories: P = 0.378, Pe = 0.213, kappa = 0.210."""
    table = np.array(
        [
            [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
        ]
    )  # fmt: skip
    assert fleiss_kappa(table) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1.0
    assert fleiss_kappa(np.array([[3, 0], [3, 0]])) is None
    with pytest.raises(ValueError, match="same number"):
        fleiss_kappa(np.array([[3, 0], [2, 0]]))


def test_agreement_is_over_what_all_answered():
    found = score(KEY, [reading("A", "rrgg"), reading("B", "rrg-")])
    assert found.agreement.items == 3
    assert found.agreement.kappa == 1.0
    assert found.missing == {"B": 1}
    assert score(KEY, [reading("A", "rrgg")]).agreement.kappa is None


def test_grades_by_kind_and_groups_by_reader():
    readings = [reading("A", "rrgg", (5, 4, 2, 1), "x"), reading("B", "gggg", (3, 4, 4, 1), "y")]
    found = score(KEY, readings)
    means = {(row.truth, row.bone): row.mean for row in found.grades}
    assert means == {
        ("real", "upper"): 4.0,
        ("real", "lower"): 4.0,
        ("generated", "upper"): 3.0,
        ("generated", "lower"): 1.0,
    }
    assert found.groups["x"].correct.hits == 4
    assert found.groups["y"].correct.hits == 2
    assert "| group x | 4/4 |" in markdown(found)
    assert ScoreRecord.parse(json.loads(found.record().text())) == found.record()


def test_the_same_reader_twice_is_refused():
    with pytest.raises(InputError, match="reader A answered in 2 files"):
        score(KEY, [reading("A", "rrgg"), reading("A", "gggg")])


HEADER = "study,reader,group,item,answer,realism,seconds\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("xyz,A,,1,real,5,1\n", "answers the study xyz, not abc"),
        ("abc,A,,1,real,5,1\nabc,A,,1,real,5,1\n", "item 1 is answered twice"),
        ("abc,A,,9,real,5,1\n", "has no item 9"),
        ("abc,A,,1,fake,5,1\n", "fake with realism 5 is no answer"),
        ("abc,A,,1,real,6,1\n", "realism 6"),
        ("abc,A,,1,real,5,1\nabc,B,,2,real,5,1\n", "names 2 readers"),
        ("", "has no answers"),
    ],
)
def test_files_that_are_refused(tmp_path, rows, message):
    path = tmp_path / "a.csv"
    path.write_text(HEADER + rows)
    with pytest.raises(InputError, match=message):
        read_answers(path, KEY)


def test_incomplete_answers_are_counted_not_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeff" + HEADER + "abc,A,g1,1,real,5,1\nabc,A,g1,2,,,0\nabc,A,g1,3,real,,2\n")
    found = read_answers(path, KEY)
    assert found.answers == {1: Answer("real", 5)}
    assert found.missing == 3
    assert found.group == "g1"


def test_the_command_scores_and_writes(study, tmp_path, capsys):
    page, key = study
    for reader in "AB":
        rows = [f"{key.study},{reader},,{item},{key.truth[item]},4,1" for item in key.truth]
        count = 12 if reader == "A" else 9
        (tmp_path / f"{reader}.csv").write_text(HEADER + "\n".join(rows[:count]))
    files = [str(tmp_path / f"{reader}.csv") for reader in "AB"]
    command = ["reader-study", "score", *files, "--key", str(page.with_name("study-key.json"))]
    assert main([*command, "-o", str(tmp_path / "score.json")]) == 0
    out = capsys.readouterr()
    assert "| A | 12/12 | 100.0 % [75.8, 100.0] |" in out.out
    assert "Fleiss' kappa 1.000" in out.out
    assert "reader B answered 9 of 12 pictures" in out.err
    assert json.loads((tmp_path / "score.json").read_text())["missing"] == {"B": 3}
    (tmp_path / "x.json").write_text("{}")
    assert main([*command[:-1], str(tmp_path / "x.json")]) == 1
    assert "is no key of a reader study" in capsys.readouterr().err
