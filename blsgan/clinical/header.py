"""A source's header as an object takes it over: in UTF-8, with values that the standard allows.

Hospitals' headers hold what no writer accepts: names of character sets as they were spelt by hand,
dates with dots, sex as a word. What can only be meant one way is written that way; the rest is left
empty, and its keyword noted, never its value. A text that its character set cannot hold is refused:
to write it otherwise would damage a name without a word.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

from blsgan.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

UTF_8 = "ISO_IR 192"

_TEXTS = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))  # whose bytes the set gives meaning
_DATE = re.compile(r"(\d{4})[./-]?(\d{2})[./-]?(\d{2})")
_TIME = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2})?(\.\d{1,6})?")
_SETS = (
    (re.compile(r"UTF[-_ ]?8"), UTF_8),
    (re.compile(r"LATIN[-_ ]?1|ISO[-_ ]?8859[-_ ]?1"), "ISO_IR 100"),
    (re.compile(r"ISO[-_ ]?IR[-_ ]?(\d+)"), r"ISO_IR \1"),
    (re.compile(r"ISO[-_ ]?2022[-_ ]?IR[-_ ]?(\d+)"), r"ISO 2022 IR \1"),
    (re.compile(r"GB[-_ ]?(18030|K)"), r"GB\1"),
)
_SEXES = {
    **dict.fromkeys(("M", "MALE", "MAN"), "M"),
    **dict.fromkeys(("F", "FEMALE", "WOMAN"), "F"),
    **dict.fromkeys(("O", "OTHER"), "O"),
}
_SKIPPED = frozenset(("SpecificCharacterSet", "DataSetTrailingPadding"))


def normalised(header: Dataset, name: str) -> tuple[Dataset, list[str]]:
    """A header whose elements can be written, and the keywords of what was left empty.

    ``name`` is the file's, for messages. Private elements and pixels stay behind.

    Raises:
        InputError: a text of the header does not fit the character set that it declares.
    """
    terms = _declared(header)
    try:
        clean, emptied = _clean(header, terms)
    except _Misfit as misfit:
        raise InputError(
            f"{name}: its {misfit} does not fit the character set that the file declares, so it "
            "cannot be passed on undamaged; correct SpecificCharacterSet, or leave out "
            "--keep-identity."
        ) from None
    clean.SpecificCharacterSet = UTF_8
    return clean, emptied


class _Misfit(Exception):
    """Bytes that are no text of the declared character set; the text is the element's keyword."""


def _declared(header: Dataset) -> list[str]:
    """The character sets that a header means, as the standard calls them; [""] is ASCII alone."""
    from pydicom.charset import python_encoding

    try:
        declared = header.get("SpecificCharacterSet") or ""
        terms = [declared] if isinstance(declared, str) else list(declared)
    except Exception:  # a damaged element says nothing
        terms = []
    known = []
    for term in terms:
        spelt = str(term).strip().upper()
        for pattern, standard in _SETS:
            if found := pattern.fullmatch(spelt):
                spelt = found.expand(standard)
                break
        known.append(spelt)
    return known if known and all(term in python_encoding for term in known) else [""]


def _clean(header: Dataset, terms: list[str]) -> tuple[Dataset, list[str]]:
    from pydicom import Dataset
    from pydicom.charset import convert_encodings
    from pydicom.datadict import keyword_for_tag

    # What is read from here on is read by these sets, whatever the file calls them.
    implicit, little = header.original_encoding
    header.set_original_encoding(implicit, little, convert_encodings(terms))
    clean = Dataset()
    emptied: list[str] = []
    for tag in sorted(header.keys()):
        keyword = keyword_for_tag(tag)
        if tag.is_private or not keyword or tag.group >= 0x5000 or keyword in _SKIPPED:
            continue
        try:
            clean.add(_element(header, tag, keyword, terms, emptied))
        except _Misfit:
            raise
        except Exception:  # whatever a value that its type does not allow raises in pydicom
            setattr(clean, keyword, None)
            emptied.append(keyword)
    return clean, emptied


def _element(
    header: Dataset, tag: BaseTag, keyword: str, terms: list[str], emptied: list[str]
) -> Any:
    """One element that can be written; raises where its value has no meaning in its type."""
    from pydicom.config import RAISE
    from pydicom.dataelem import DataElement

    raw = header.get_item(tag).value
    element = header[tag]
    if tag.group == 0x0028 or element.VR == "UI":  # of the pixels; UIDs are taken as they are
        return element
    value = element.value
    if value is None or value == "":
        return DataElement(tag, element.VR, None)
    if element.VR == "SQ":
        items = []
        for item in value:
            clean, inside = _clean(item, terms)
            items.append(clean)
            emptied += inside
        return DataElement(tag, "SQ", items)
    if element.VR in _TEXTS:
        value = _text(keyword, raw, value, ascii_alone=set(terms) <= {"", "ISO_IR 6"})
    elif element.VR == "DA":
        value = _date(str(value))
    elif element.VR == "TM":
        value = _time(str(value))
    elif keyword == "PatientSex":
        value = _SEXES[str(value).strip().upper()]
    return DataElement(tag, element.VR, value, validation_mode=RAISE)


def _text(keyword: str, raw: Any, value: Any, *, ascii_alone: bool) -> Any:
    """A text, or texts; raises :class:`_Misfit` where its bytes are none of its character set."""
    texts = [str(value)] if isinstance(value, str) or not _is_several(value) else [*map(str, value)]
    if ascii_alone and isinstance(raw, bytes) and not raw.isascii():
        raise _Misfit(keyword)
    # What pydicom puts where bytes have no meaning, and the escape to a set it does not know.
    if any("\ufffd" in text or "\x1b" in text for text in texts):
        raise _Misfit(keyword)
    return texts if len(texts) > 1 else texts[0]


def _is_several(value: Any) -> bool:
    return type(value).__name__ == "MultiValue" or isinstance(value, list)


def _date(text: str) -> str:
    found = _DATE.fullmatch(text.strip())
    if found is None:
        raise ValueError("no date")
    return datetime.date(*map(int, found.groups())).strftime("%Y%m%d")


def _time(text: str) -> str:
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError("no time")
    hour, minute, second, fraction = found.groups()
    datetime.time(int(hour), int(minute or 0), min(int(second or 0), 59))  # 60: a leap second
    return "".join(part or "" for part in (hour, minute, second, fraction))
