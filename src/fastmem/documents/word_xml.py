"""The XML of a Word document, changed so that mammoth (1.13) reads what it would leave out.

These are simple fields (dates, captions, references), runs with a writing direction, the text under ruby characters,
carriage returns, text boxes that have no older form, and equations. Equations become one line of characters: x^2,
(a+b)/2, x_1, √(a+b), √[3]8. What mammoth reads although Word does not show it, is removed: fields in the code of
another one.
"""

import re
from collections.abc import Iterable
from typing import Any

# Of the transitional and of the strict format.
WORD = (
    "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}",
    "{http://purl.oclc.org/ooxml/wordprocessingml/main}",
)
MATH = (
    "{http://schemas.openxmlformats.org/officeDocument/2006/math}",
    "{http://purl.oclc.org/ooxml/officeDocument/math}",
)
COMPATIBILITY = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"  # two forms of one thing
UNWRAPPED = [f"{word}{name}" for word in WORD for name in ("fldSimple", "bdo", "dir", "ruby", "rubyBase")]
LEFT_OUT = [f"{word}{name}" for word in WORD for name in ("fldData", "rubyPr", "rt")]
TEXTS = [f"{word}t" for word in WORD]
DRAWINGS = [f"{word}drawing" for word in WORD]
TEXT_BOXES = [f"{word}txbxContent" for word in WORD]
FIELD_MARKS = [f"{word}fldChar" for word in WORD]
RETURNS = [f"{word}cr" for word in WORD]
# What is written before parts of an equation: before those that form a unit, before others, and before all but the
# first.
UNITS = {"num": "", "den": "/", "sup": "^", "limUpp/lim": "^", "sub": "_", "limLow/lim": "_", "rad/e": ""}
SPACED = ("nary/e", "func/e")
LISTED = {"m/mr": "; ", "mr/e": ", ", "eqArr/e": "; "}
EDGE = "\u2063"  # of a fraction, until `spaced`; a character that cannot be seen


def readable_xml(data: bytes) -> bytes:
    """The same part of the document for mammoth; as it is if it is not well-formed, for mammoth says why."""
    from lxml import etree

    root = _parsed(data)
    if root is None:
        return data
    for math in MATH:
        _write_in_line(root, math)
        for element in root.iter(f"{math}r", f"{math}t"):
            element.tag = WORD[0] + etree.QName(element).localname
        etree.strip_tags(root, f"{math}*")
    _keep_text_boxes(root)
    etree.strip_elements(root, *LEFT_OUT, with_tail=False)
    etree.strip_tags(root, *UNWRAPPED)
    _empty_field_codes(root)
    for element in root.iter(*RETURNS):
        element.tag = f"{WORD[0]}br"
    return etree.tostring(root.getroottree(), encoding="utf-8")


def names_with_text(data: bytes, names: Iterable[str]) -> set[str]:
    """Those names, without a prefix, of which elements in this part of the document hold text."""
    root = _parsed(data)
    if root is None:
        return set()
    found = ((name, element) for name in names for element in root.iter(f"{{*}}{name}"))
    return {name for name, element in found if _has_text(element)}


def spaced(text: str) -> str:
    """The text with a blank between a fraction and letters or digits beside it: 5 and 1/2 are not 51/2."""
    return re.sub(rf"(?<=\w){EDGE}+(?=\w)", " ", text).replace(EDGE, "")


def _parsed(data: bytes) -> Any:
    """The root, or None of what is not well-formed. Entities stay as they are: written out, a few fill the memory."""
    from lxml import etree

    try:
        return etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True))
    except etree.XMLSyntaxError:
        return None


def _keep_text_boxes(root: Any) -> None:
    """Put the text boxes of drawings where mammoth reads them. It reads those in the older form of a drawing, VML."""
    for drawing in list(root.iter(*DRAWINGS)):
        boxes: list[Any] = []
        for box in drawing.iter(*TEXT_BOXES):
            if not any(outer in boxes for outer in box.iterancestors()):
                boxes.append(box)
        if boxes:
            drawing.tag, drawing[:] = f"{WORD[0]}pict", boxes
    for both in list(root.iter(f"{COMPATIBILITY}AlternateContent")):
        older = both.find(f"{COMPATIBILITY}Fallback")
        newer = next((one for one in both.findall(f"{COMPATIBILITY}Choice") if _has_text(one)), None)
        if newer is not None and (older is None or not _has_text(older)):
            if older is not None:
                both.remove(older)
            newer.tag = f"{COMPATIBILITY}Fallback"


def _has_text(element: Any) -> bool:
    return any(text.text for text in element.iter(*TEXTS))


def _empty_field_codes(root: Any) -> None:
    """Remove the results of fields in the code of another one, of which Word shows only the result."""
    texts: list[Any] = []
    codes: list[int | None] = []  # of every open field, the first text in its code; None once its result has begun
    for element in root.iter(*FIELD_MARKS, *TEXTS):
        if element.tag in TEXTS:
            texts.append(element)
        elif "begin" in element.values():
            codes.append(len(texts))
        elif codes:
            if (first := codes.pop()) is not None:  # a code that nothing ends is a mistake, and stays
                for text in texts[first:]:
                    text.text = ""
                del texts[first:]
            if "separate" in element.values():
                codes.append(None)


def _write_in_line(root: Any, math: str) -> None:
    """Write the signs of equations that are elements, such as brackets, as characters. math: their namespace."""

    def parts(path: str) -> Any:
        return root.iterfind(".//" + "/".join(f"{math}{name}" for name in path.split("/")))

    def sign(element: Any, path: str, default: str) -> str:
        found = element.find("/".join(f"{math}{name}" for name in path.split("/")))
        return default if found is None else found.get(f"{math}val", default)

    for path, before in UNITS.items():
        for part in parts(path):
            symbols = "".join(part.itertext()).strip()
            plain = sum(1 for _ in part.iter(f"{math}t")) == 1  # else it may hold signs that are not written yet
            single = plain and (len(symbols) == 1 or symbols.isdecimal())
            if symbols:
                part.insert(0, _run(before if single else f"{before}("))
                part.append(_run("" if single else ")"))
    for brackets in parts("d"):
        for number, part in enumerate(brackets.findall(f"{math}e")):
            part.insert(0, _run(sign(brackets, "dPr/sepChr", "|") if number else sign(brackets, "dPr/begChr", "(")))
        brackets.append(_run(sign(brackets, "dPr/endChr", ")")))
    for path in SPACED:
        for part in parts(path):
            part.insert(0, _run(" "))
    for path, between in LISTED.items():
        whole, _, name = path.partition("/")
        for element in parts(whole):
            for part in element.findall(f"{math}{name}")[1:]:
                part.insert(0, _run(between))
    for operator in parts("nary"):
        operator.insert(0, _run(sign(operator, "naryPr/chr", "∫")))
    for degree in parts("rad/deg"):
        if "".join(degree.itertext()).strip():
            degree.insert(0, _run("["))
            degree.append(_run("]"))
    for radical in parts("rad"):
        radical.insert(0, _run("√"))
    for fraction in parts("f"):
        fraction.insert(0, _run(EDGE))
        fraction.append(_run(EDGE))


def _run(text: str) -> Any:
    from lxml import etree

    run = etree.Element(f"{WORD[0]}r")
    etree.SubElement(run, f"{WORD[0]}t").text = text
    return run
