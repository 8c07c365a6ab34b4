"""A reader clicks through a study: by keys and by mouse, over a reload, to a CSV that is scored."""

import time

import pytest

from blsgan.cli import main
from blsgan.report.scoring import read_answers, read_key


@pytest.fixture(scope="module")
def study(tmp_path_factory, separated):
    folder = tmp_path_factory.mktemp("study")
    results = separated(folder, {"a": (1, 5.0), "b": (2, -9.0), "c": (3, 5.0), "d": (4, -9.0)})
    page = folder / "study.html"
    options = ["--count", "8", "--min-overlap", "30"]
    assert main(["reader-study", "build", str(results), "-o", str(page), *options]) == 0
    return page, read_key(folder / "study-key.json")


def shown(browser):
    return browser.run(
        "return [...document.querySelectorAll('#stage img')].findIndex(i => !i.hidden) + 1"
    )


def start(browser, page, reader):
    browser.open(page)
    browser.find("#reader").send_keys(reader)
    browser.find("#who button").click()


def downloaded(browser, name):
    path = browser.downloads / name
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return path


def test_a_study_from_start_to_score(browser, study, tmp_path, capsys):
    page, key = study
    browser.open(page)
    browser.run("localStorage.clear()")
    start(browser, page, "R-1")
    body = browser.find("body")
    for item in range(1, 6):
        assert shown(browser) == item
        body.send_keys("r" if key.truth[item] == "real" else "g")
        body.send_keys(str(item))
        body.send_keys("\ue007")
    browser.driver.refresh()
    assert "5 of 8 pictures" in browser.find("#resumed").text
    assert browser.find("#reader").get_property("value") == "R-1"
    browser.find("#who button").click()
    assert shown(browser) == 6

    assert not browser.find("#next").is_enabled()
    body = browser.find("body")
    body.send_keys("\ue003")  # back
    assert shown(browser) == 5
    assert browser.find("input[name=realism][value='5']").is_selected()
    browser.find("#next").click()
    for _ in (6, 7, 8):
        browser.find("input[name=answer][value=generated]").click()
        browser.find("input[name=realism][value='2']").click()
        browser.find("#next").click()
    assert browser.find("#complete").text == "All 8 pictures are answered."
    assert browser.errors() == []
    assert browser.requests() == []
    browser.screenshot(tmp_path / "study.png")
    browser.find("#save").click()
    path = downloaded(browser, f"study-{key.study}-R-1.csv")

    reading = read_answers(path, key)
    assert reading.missing == 0
    assert [reading.answers[item].realism for item in range(1, 9)] == [1, 2, 3, 4, 5, 2, 2, 2]
    assert all(reading.answers[item].answer == key.truth[item] for item in range(1, 6))
    arguments = [str(path), "--key", str(page.with_name("study-key.json"))]
    assert main(["reader-study", "score", *arguments]) == 0
    correct = 5 + sum(key.truth[item] == "generated" for item in (6, 7, 8))
    assert f"| R-1 | {correct}/8 |" in capsys.readouterr().out


def test_a_name_is_no_code(browser, study):
    page, _ = study
    browser.open(page)
    browser.run("localStorage.clear()")
    start(browser, page, "=Jane Doe")
    assert browser.find("#reading").get_property("hidden")


def test_enter_does_nothing_before_an_answer(browser, study):
    page, _ = study
    browser.open(page)
    browser.run("localStorage.clear()")
    start(browser, page, "R2")
    browser.find("body").send_keys("\ue007")
    browser.find("body").send_keys("4")
    browser.find("body").send_keys("\ue007")
    assert shown(browser) == 1


def test_answers_can_be_removed(browser, study):
    page, _ = study
    browser.open(page)
    browser.run("localStorage.clear()")
    start(browser, page, "R3")
    browser.find("body").send_keys("g")
    assert "generated" in browser.run("return Object.values(localStorage).join()")
    browser.run("window.confirm = () => true; document.getElementById('forget').click()")
    assert browser.run("return localStorage.length") == 0
