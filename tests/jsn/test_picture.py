"""The picture of a measurement: no text runs off it."""

import pytest
from PIL import ImageFont

from blsgan.jsn.picture import wrapped

FONT = ImageFont.load_default(14)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "short",
        "a sentence of many words that does not fit into one line of this width " * 3,
        "/a/path/without/any/blank/" + "x" * 200,
    ],
)
def test_no_line_is_wider_than_asked_for_and_no_letter_is_lost(text):
    lines = wrapped(text, FONT, 160)
    assert all(FONT.getlength(line) <= 160 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert len(lines) == 1 or len(text) > 20
