"""The report as a reader meets it: a real browser, no errors, a slider that moves."""

import numpy as np
import pytest

from blsgan.cli import main


@pytest.fixture(scope="module")
def page(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "jsn.csv").write_text(
        "joint,baseline,followup,narrowing_px,narrowing_mm,mismatch,quality,problems,notes\n"
        "00001_L_2,a.png,b.png,8.0,0.8,False,0.99,,\n"
        "00001_L_2,b.png,c.png,4.9,0.49,False,0.98,,\n"
        "00001_L_2,a.png,c.png,40.0,4.0,True,0.1,the bones would have moved too far,\n"
    )
    out = folder / "report.html"
    images = ["--images", str(run_folder.parent / "in")]
    assert main(["report", str(run_folder), str(folder), *images, "-o", str(out)]) == 0
    return out


def test_it_loads_without_errors_and_asks_nobody(browser, page, tmp_path):
    browser.open(page)
    assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.errors() == []
    assert browser.requests() == []
    shot = browser.screenshot(tmp_path / "report.png")
    print(f"screenshot: {shot}")
    assert shot.stat().st_size > 100_000


def test_the_slider_moves_and_changes_what_is_shown(browser, page):
    browser.open(page)
    figure = browser.find(".compare")
    stack, slider = figure.find_element("css selector", ".stack"), browser.find(".compare input")
    middle = browser.pixels(stack)
    slider.send_keys("\ue010")  # End: the input alone
    whole_input = browser.pixels(stack)
    slider.send_keys("\ue011")  # Home: the layer alone
    layer = browser.pixels(stack)
    assert slider.get_attribute("aria-valuetext") == "0 % input, the rest upper layer"
    half = middle.shape[1] // 2
    np.testing.assert_array_equal(middle[:-40, : half - 8], whole_input[:-40, : half - 8])
    np.testing.assert_array_equal(middle[:-40, half + 8 :], layer[:-40, half + 8 :])
    assert np.abs(whole_input.astype(int) - layer).mean() > 20
    slider.send_keys("\ue014")  # the right arrow key
    assert slider.get_property("value") == "1"


def test_dragging_on_the_picture_moves_the_slider(browser, page):
    from selenium.webdriver import ActionChains

    browser.open(page)
    stack = browser.all(".compare .stack")[1]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", stack)
    width = stack.size["width"]
    drag = ActionChains(browser.driver)
    drag.move_to_element(stack).click_and_hold().move_by_offset(width // 4, 0).release().perform()
    value = int(browser.all(".compare input")[1].get_property("value"))
    assert value == pytest.approx(75, abs=2)


def test_the_table_filters_joints(browser, page):
    browser.open(page)
    rows = "[...document.querySelectorAll('#joints tbody tr')]"
    shown = f"return {rows}.filter(row => !row.hidden).length"
    assert browser.run(shown) == 2
    browser.find("#search").send_keys("ALONE")
    assert browser.run(shown) == 1
    browser.find("#search").clear()
    browser.find("#search").send_keys(" ")
    browser.find("#flagged").click()
    assert browser.run(shown) == 1
    assert browser.find("#found").text == "1 of 2 joints"


def test_the_curve_is_drawn_and_told(browser, page):
    browser.open(page)
    label = browser.find(".change svg").get_attribute("aria-label")
    assert "visit 2: +0.800, visit 3: +1.290" in label
    assert "no measurement (the bones would have moved too far)" in browser.find(".flags").text


def test_print_shows_layers_whole(browser, page):
    browser.open(page)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        hidden = "return getComputedStyle(document.querySelector(arguments[0])).display"
        for selector in (".over", ".compare input", ".controls"):
            assert browser.run(hidden, selector) == "none"
        assert browser.run(hidden, ".compare img:not(.over)") == "block"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_script_in_a_name_does_not_run(browser, separated, tmp_path):
    results = separated(tmp_path, {"<img src=x onerror=window.hit=1>": (2, -8.0)})
    assert main(["report", str(results), "-o", str(tmp_path / "r.html")]) == 0
    browser.open(tmp_path / "r.html")
    assert browser.run("return window.hit") is None
    assert browser.errors() == []
    assert "<img src=x" in browser.find("h2[id^=joint]").text
