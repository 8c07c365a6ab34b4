"""The page of a patient's hands in a real browser: on a screen, on a phone, under its sliders."""

import re

import numpy as np
import pytest
from PIL import Image

from blsgan.anatomy import JOINTS, LANDMARKS
from blsgan.records.hand import HandOptions, HandRecord, JointOfHand, Placement
from blsgan.records.hand_visits import HandVisitsRecord, JointInterval, VisitOfHand
from blsgan.records.record import Backend, ImageFacts, InputFile, Weights
from blsgan.report.hand import VisitPage, write_hand_page

WEIGHTS = Weights(name="lite", sha256="0" * 64)


def hand(folder, name):
    folder.mkdir()
    grey = np.linspace(0, 255, 300 * 200).reshape(300, 200).astype(np.uint8)
    Image.fromarray(grey).convert("RGB").save(folder / "hand_overview.png")
    joint = JointOfHand(
        status="ok", reasons=[], experimental=False, finger=3, folder="mcp3",
        located_px={"x": 1.0, "y": 1.0}, bone_width_px=50.0, figures={}, confidence=None,
        crop=Placement(centre_px={"x": 1.0, "y": 1.0}, turned_deg=0.0, side_px=80), overlap_px=0,
    )  # fmt: skip
    return HandRecord(
        schema=1, name=name, blsgan="0", inputs={"image": InputFile(sha256="0" * 64)},
        options=HandOptions(), weights={}, image=ImageFacts(height_px=300, width_px=200),
        pixel_spacing_mm=None, side="left", side_source="thumb", hands=1, hand=1, turned_deg=0.0,
        negative=False, confidence=1.0, landmarks={key: [0.0, 0.0, 1.0] for key in LANDMARKS},
        joints=dict.fromkeys(JOINTS, joint), backend=Backend(name="onnx", version="1"),
        versions={}, times_ms={}, notes=["<script>alert(1)</script>"],
    )  # fmt: skip


def written(root, count):
    """A page of so many visits, three of them measured at one joint."""
    visits = [VisitPage(root / f"v{n}", hand(root / f"v{n}", f"v{n}")) for n in range(count)]
    intervals = [
        JointInterval(
            joint="mcp3", side="left", experimental=False, earlier=0, later=later, status="ok",
            verdict=verdict, narrowing_px=narrowing, standard_error_px=0.1, detectable_px=0.3,
            width_px=[5.0, 5.0 - narrowing], flags=["a flag"],
        )
        for later, narrowing, verdict in ((1, -0.0004, "not detectable"), (2, 0.9, "narrowed"))
    ]  # fmt: skip
    record = HandVisitsRecord(
        schema=1, blsgan="0", weights=WEIGHTS, intervals=intervals, notes=["a note"],
        visits=[
            VisitOfHand(folder=f"v{n}", side="left", day=100 * n, image_sha256="0" * 64)
            for n in range(count)
        ],
    )  # fmt: skip
    black, white = np.zeros((90, 90), np.uint8), np.full((90, 90), 255, np.uint8)
    return write_hand_page(root / "hands.html", record, visits, {("left", "mcp3"): (black, white)})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return written(tmp_path_factory.mktemp("hands"), 3)


def test_it_loads_without_errors_and_asks_nobody(browser, page):
    browser.open(page)
    assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.errors() == []
    assert browser.requests() == []
    assert "narrowed" in browser.find("#left-mcp3 h3").text
    assert len(browser.all("#left-mcp3 .point")) == 3


def test_what_rounds_to_zero_has_no_sign(page):
    text = page.read_text()
    assert "0.00 px since visit 1" in text
    assert not re.search(r"[-+]0\.0+\b", text)


def test_the_joint_space_of_every_visit_is_in_the_table(browser, page):
    browser.open(page)
    cells = browser.all("tr:has(a[href='#left-mcp3']) td")
    assert [cell.text.splitlines()[1] for cell in cells] == [
        "space 5.00 px",
        "space 5.00 px",
        "space 4.10 px",
    ]


def test_notes_are_open_on_paper(browser, page):
    browser.open(page)
    closed = "const d = document.querySelector('details'); return [d.open, d.offsetHeight]"
    is_open, on_screen = browser.run(closed)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        _, on_paper = browser.run(closed)
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert not is_open
    assert on_paper > 1.5 * on_screen


def test_the_slider_shows_the_first_and_the_last_visit(browser, page):
    browser.open(page)
    stack, slider = browser.find(".compare .stack"), browser.find(".compare input")
    slider.send_keys("\ue010")  # End
    first = browser.pixels(stack)[5:-40, 5:-5]
    slider.send_keys("\ue011")  # Home
    last = browser.pixels(stack)[5:-40, 5:-5]
    assert first.mean() < 30
    assert last.mean() > 220


def test_ten_visits_fit_a_sheet_of_paper(browser, tmp_path):
    browser.open(written(tmp_path, 10))
    size = browser.driver.get_window_size()
    try:
        browser.driver.set_window_size(794, 1000)
        table = "document.querySelector('.scroll')"
        assert browser.run(f"return {table}.scrollWidth <= {table}.clientWidth")
    finally:
        browser.driver.set_window_size(size["width"], size["height"])
    assert len(browser.all(".scroll table")) == 3
    assert len(browser.all(".scroll td")) == 10 * len(JOINTS)


def test_it_fits_a_phone(browser, page):
    browser.open(page)
    size = browser.driver.get_window_size()
    try:
        browser.driver.set_window_size(400, 800)
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        browser.driver.set_window_size(size["width"], size["height"])
