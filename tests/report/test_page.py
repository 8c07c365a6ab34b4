"""The report as a file: self-contained, escaped, in pages, the same twice."""

import html.parser
import json
import os
import re
import shutil
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from blsgan.cli import main
from blsgan.records.masks import Confidence
from blsgan.records.separation import Overlap, PredictedMasks
from blsgan.report.collect import Curve, Joint, Visit, _mask_flags
from blsgan.report.page import _summary
from blsgan.report.plots import plot_curve, plot_histogram


class Page(html.parser.HTMLParser):
    """Tags and attributes of a page; each tag that must be closed is."""

    VOID = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self, path):
        super().__init__()
        self.tags, self.open = [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def report(*arguments):
    return main(["report", *map(str, arguments)])


def test_one_page_that_needs_nothing_else(run_folder, tmp_path):
    out = tmp_path / "report.html"
    assert report(run_folder, "--images", run_folder.parent / "in", "-o", out) == 0
    assert os.listdir(tmp_path) == ["report.html"]
    page = Page(out)
    for name, attributes in page.tags:
        for attribute in ("src", "href", "action", "srcset", "poster", "data"):
            value = attributes.get(attribute)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), name
        assert not any(key.startswith("on") or key == "style" for key in attributes)
        if name == "img":
            assert "alt" in attributes
            assert attributes["alt"] or attributes["class"] == "over"
    assert page.named("link") == []
    assert len(page.named("script")) == len(page.named("style")) == 1
    policy = next(m["content"] for m in page.named("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy
    assert len(page.named("input")) == 2 + 2 * 4  # search, only flagged, two sliders a visit
    assert "(bones only)" not in page.text


def test_without_the_radiographs_inputs_are_the_bones_and_said(run_folder, tmp_path):
    assert report(run_folder, "-o", tmp_path / "r.html") == 0
    assert (tmp_path / "r.html").read_text().count("(bones only)") == 4


def test_the_same_run_gives_the_same_bytes(run_folder, tmp_path):
    for name in ("a", "b"):
        assert report(run_folder, "-o", tmp_path / name / "r.html") == 0
    assert (tmp_path / "a/r.html").read_bytes() == (tmp_path / "b/r.html").read_bytes()


def test_names_cannot_inject(separated, tmp_path):
    evil = "<script>alert(1)<\\script>\"' onload=x {{ 7*7 }}"
    results = separated(tmp_path, {evil: (2, -8.0)})
    assert report(results, "--title", "<img src=x>", "-o", tmp_path / "r.html") == 0
    page = Page(tmp_path / "r.html")
    assert len(page.named("script")) == 1
    assert all(attributes["src"].startswith("data:") for attributes in page.named("img") if
               attributes.get("class") != "over")  # fmt: skip
    assert "{{ 7*7 }}" in page.text
    assert "onload" not in {key for _, attributes in page.tags for key in attributes}


def test_many_joints_become_linked_pages(run_folder, tmp_path):
    out = tmp_path / "a report.html"
    assert report(run_folder, "--per-page", 2, "-o", out) == 0
    assert sorted(os.listdir(tmp_path)) == ["a report-2.html", "a report.html"]
    page = Page(out)
    links = {unquote(a["href"]) for a in page.named("a")}
    assert {"a report-2.html", "#joint-1", "#joint-2", "a report-2.html#joint-3"} <= links
    other = Page(tmp_path / "a report-2.html")
    assert {"joint-3", "joint-4"} <= {a["id"] for a in other.named("article")}
    assert {unquote(a["href"]) for a in other.named("a")} == {"a report.html"}


def test_a_shorter_report_removes_the_longer_ones_pages(run_folder, tmp_path):
    out = tmp_path / "r.html"
    assert report(run_folder, "--per-page", 1, "-o", out) == 0
    assert len(os.listdir(tmp_path)) == 4
    (tmp_path / "r-4.html").write_text("somebody else's")
    assert report(run_folder, "--per-page", 2, "-o", out) == 0
    assert sorted(os.listdir(tmp_path)) == ["r-2.html", "r-4.html", "r.html"]


def test_the_table_of_flags_counts_joints():
    """What several visits of a joint raise, each with its own figure, is one joint."""

    def visit(name, confidence):
        masks = PredictedMasks(confidence=Confidence(score=confidence))
        record = SimpleNamespace(prediction=masks, overlap=Overlap(area_px=0))
        result = SimpleNamespace(record=record)
        return Visit((name,), result, flags=_mask_flags(result))

    joints = [
        Joint("one", [visit("a", 0.91), visit("b", 0.92), visit("c", 0.91)], [], None),
        Joint("two", [visit("d", 0.93)], [], None),
    ]
    assert _summary(joints)["flags"] == [
        {"level": "warning", "text": "the bone masks were predicted, not drawn", "count": 2}
    ]
    assert joints[1].visits[0].flags[0].text.endswith("not drawn, confidence 0.93")


def test_limit_shows_flagged_joints_first_and_says_so(run_folder, tmp_path):
    results = tmp_path / "out"
    shutil.copytree(run_folder, results)
    (results / "alone/only_lower.png").unlink()
    out = tmp_path / "r.html"
    assert report(results, "--limit", 1, "-o", out) == 0
    page = Page(out)
    assert "1 of 4 entries are shown in detail" in page.text
    assert len(page.named("article")) == 1
    assert 'id="joint-1-name">alone/only' in page.text


def test_panels_can_be_left_out(run_folder, tmp_path):
    sizes = {}
    for flag in ("--panels", "--no-panels"):
        assert report(run_folder, flag, "-o", tmp_path / "r.html") == 0
        sizes[flag] = (tmp_path / "r.html").stat().st_size
    assert sizes["--no-panels"] < 0.7 * sizes["--panels"]


def test_refusals(run_folder, tmp_path, capsys):
    assert report(run_folder, "-o", tmp_path / "r.pdf") == 2
    assert "does not end in .html" in capsys.readouterr().err
    assert report(tmp_path / "none", "-o", tmp_path / "r.html") == 1
    assert report(run_folder, "--title", " ", "-o", tmp_path / "r.html") == 2
    (tmp_path / "r-2.html").write_text("somebody else's")
    assert report(run_folder, "--per-page", 2, "-o", tmp_path / "r.html") == 2
    assert (tmp_path / "r-2.html").read_text() == "somebody else's"
    (tmp_path / "r-2.html").unlink()
    assert os.listdir(tmp_path) == []


def test_a_failed_report_leaves_the_earlier_one(run_folder, tmp_path, monkeypatch):
    out = tmp_path / "r.html"
    assert report(run_folder, "--per-page", 1, "-o", out) == 0
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    monkeypatch.setattr("blsgan.report.page.render", lambda *a, **k: 1 / 0)
    assert report(run_folder, "--per-page", 1, "-o", out) == 1
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_plot_says_what_it_shows():
    plot = plot_curve(Curve("mm", [0.0, -0.12, None, 0.3], [False, False, False, True], None))
    assert plot.description.endswith("visit 2: -0.120, visit 3: not measured, visit 4: +0.300.")
    assert [point.hollow for point in plot.points] == [False, False, True]
    ys = [point.y for point in plot.points]
    assert ys[2] < ys[0] < ys[1]
    assert ys[0] == plot.zero
    assert all(re.fullmatch(r"-?\d\.\d", tick.text) for tick in plot.ticks)
    assert "-0.0" not in {tick.text for tick in plot.ticks}


def test_what_is_within_the_error_is_shaded_and_said(run_folder, tmp_path, write_pairs):
    table = write_pairs(
        tmp_path / "jsn.csv",
        [
            ("00001_L_2", "a.png", "b.png", 0.4, False, ""),
            ("00001_L_2", "b.png", "c.png", -2.0, False, ""),
        ],
    )
    assert report(run_folder, table, "--sdd", 0.5, "-o", tmp_path / "r.html") == 0
    text = (tmp_path / "r.html").read_text()
    assert "+0.040 mm (+0.40 px), within error<" in text
    assert "-0.200 mm (-2.00 px)<" in text
    assert "Less than 0.050 is within the error of measurement." in text
    plot = plot_curve(Curve("mm", [0.0, 0.04], [False] * 2, None, 0.1), 0.5)
    top, height = plot.band
    assert top + height / 2 == pytest.approx(plot.zero, abs=0.02)
    assert top < plot.points[1].y
    assert plot_curve(Curve("mm", [0.0, 0.04], [False] * 2, None, None), 0.5).band is None


@pytest.mark.parametrize("values", [[0.0] * 8, [1e-9 * i for i in range(9)], [-3, 5, 8] * 4])
def test_a_histogram_counts_every_value(values):
    plot = plot_histogram("Narrowing", values, "px")
    assert sum(int(bar.title.rsplit(": ", 1)[1]) for bar in plot.bars) == len(values)
    assert plot_histogram("Narrowing", [1.0, 2.0], "px") is None


def test_a_name_that_is_no_text_is_shown_as_an_escape(run_folder, tmp_path):
    """A file whose name is bytes that are no UTF-8 must not cost the whole report."""
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (record,) = (run / "alone").glob("*.json")
    content = json.loads(record.read_text())
    content["image"]["file"] = "a\udcff.png"
    record.write_text(json.dumps(content))
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    assert "a\\udcff.png" in page.read_text(encoding="utf-8")
