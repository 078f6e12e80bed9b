"""The text of an HTML page: what a reader reads, block by block.

Left out: scripts, styles and what else is not text; navigation and controls; hidden elements; text that is struck
through, which no longer holds. Headers, footers and asides are kept: an answer may stand in them.
"""

import codecs
import re
from dataclasses import dataclass, field
from typing import Any

from fastmem.documents.plain_text import encoding_of_mark

# libxml2 stops without an exception at 2048 nested elements, of which it adds some itself.
TOO_DEEP = "its elements are nested more than 2,000 deep"

LONGEST_ROW = 1000  # characters of a table row that is written as a line

LEFT_OUT = {
    *("script", "style", "template", "noscript", "svg", "iframe", "object", "canvas", "audio", "video"),
    *("nav", "menu", "button", "select", "textarea", "datalist", "dialog", "del", "s", "strike"),
}
LEFT_OUT_ROLES = {"navigation", "search", "menu", "menubar"}
BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt"),
    *("fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr"),
    *("legend", "li", "main", "ol", "p", "pre", "section", "summary", "table", "td", "th", "tr", "ul"),
}
CELLS = {"td", "th"}
# A charset in the first kilobyte, in a meta element or an XML declaration, as browsers look for it.
CHARSET = re.compile(rb"""<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)

# What browsers read under a name (the WHATWG Encoding Standard): supersets of the encodings that Python means by it.
BROWSER_ENCODINGS = {
    **{"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874"},
    **{"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949"},
}
# Names that are in use, and that Python does not know.
BROWSER_NAMES = {
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "x-gbk": "gb18030",
    "windows-949": "cp949",
    "windows-874": "cp874",
}


@dataclass(frozen=True)
class _Block:
    """A paragraph. tight: it follows a block of the same kind (a list item, a table row) without an empty line."""

    text: str
    tight: str = ""


@dataclass
class _Writer:
    """Collects blocks; inside a table row, the blocks of each cell apart. numbered: ordered lists have numbers."""

    numbered: bool = True
    pieces: list[str] = field(default_factory=list)
    blocks: list[_Block] = field(default_factory=list)
    rows: list[tuple[list[_Block], list[list[_Block]]]] = field(default_factory=list)
    items: list[int | None] = field(default_factory=list)
    mark: str = ""
    preformatted: int = 0

    def text(self, text: str | None) -> None:
        if text:
            self.pieces.append(text if self.preformatted else re.sub(r"\s+", " ", text))

    def end_block(self) -> None:
        joined = "".join(self.pieces)
        self.pieces = []
        lines = joined.split("\n")
        text = "\n".join(line.rstrip() if self.preformatted else " ".join(line.split()) for line in lines).strip("\n")
        if text.strip():
            self.blocks.append(_Block(self.mark + text, "item" if self.mark else ""))
            self.mark = ""

    def start_row(self) -> None:
        self.rows.append((self.blocks, []))
        self.blocks = []

    def end_cell(self) -> None:
        if self.rows:
            self.rows[-1][1].append(self.blocks)
            self.blocks = []

    def end_row(self) -> None:
        """A row becomes a line. A row with another table in it, or with much text, is a layout: it stays blocks."""
        before, cells = self.rows.pop()
        self.blocks = before + self.blocks
        inside = [block for cell in cells for block in cell]
        line = " | ".join(" / ".join(block.text.replace("\n", " / ") for block in cell) for cell in cells)
        if len(line) > LONGEST_ROW or (len(cells) == 1 and len(inside) > 1) or any(b.tight == "row" for b in inside):
            self.blocks += inside
        elif line.strip(" |"):
            self.blocks.append(_Block(line.rstrip(), "row"))


def html_text(data: bytes, *, numbered: bool = True) -> str:
    """numbered: ordered lists are numbered, else dashed. Errors: `ValueError` that says why it cannot be read."""
    from lxml import etree
    from lxml import html as lxml_html

    source = re.sub(r"[\x00-\x08\x0b\x0e-\x1f]", "", _decoded(data))
    if not source.strip():
        return ""
    parser = lxml_html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        page = lxml_html.document_fromstring(source.encode(), parser=parser)
    except etree.ParserError:  # nothing but comments
        return ""
    if any(problem.type_name == "ERR_RESOURCE_LIMIT" for problem in parser.error_log):
        raise ValueError(TOO_DEEP)
    blocks = _blocks(etree.iterwalk(page, events=("start", "end")), _Writer(numbered))
    title = " ".join(page.findtext(".//title", default="").split())
    if title and not any(title in block.text for block in blocks):
        blocks.insert(0, _Block(title))
    text = ""
    for before, block in zip([_Block(""), *blocks], blocks, strict=False):
        between = "\n" if block.tight and block.tight == before.tight else "\n\n"
        text += (between if text else "") + block.text
    return text


def _decoded(data: bytes) -> str:
    encoding = encoding_of_mark(data)
    if encoding is None and (found := CHARSET.search(data[:1024])):
        encoding = _browser_encoding(found[1].decode())
    try:
        return data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        said = f"it says its charset is {encoding}" if encoding else "it names no charset"
        reason = f"byte 0x{data[error.start]:02x} at position {error.start} is not {encoding or 'UTF-8'}"
        raise ValueError(f"{said}, and {reason}") from error


def _browser_encoding(name: str) -> str | None:
    """Python's name of what browsers read for a charset; None for a charset that does not exist."""
    name = BROWSER_NAMES.get(name.lower(), name)
    try:
        b" ".decode(name)  # fails for what is no encoding of text, such as hex
    except (LookupError, UnicodeError):
        return None
    encoding = codecs.lookup(name).name
    if encoding.startswith(("utf-16", "utf-32")):
        return None  # its name was read as ASCII, so the page is not UTF-16; browsers read UTF-8 then
    return BROWSER_ENCODINGS.get(encoding, encoding)


def _blocks(walk: Any, writer: _Writer) -> list[_Block]:
    """The blocks of a page. walk: lxml's iterator over start and end of every element; it needs no recursion."""
    for event, element in walk:
        tag = element.tag
        if event == "start":
            if tag == "head" or _is_left_out(element):
                walk.skip_subtree()
                continue
            if tag in BLOCKS:
                writer.end_block()
            _start(writer, tag, element)
            writer.text(element.text)
            continue
        if not (tag == "head" or _is_left_out(element)):
            _end(writer, tag)
        writer.text(element.tail)
    writer.end_block()
    return writer.blocks


def _start(writer: _Writer, tag: str, element: Any) -> None:
    if tag == "br":
        writer.pieces.append("\n")
    elif tag == "tr":
        writer.start_row()
    elif tag == "pre":
        writer.preformatted += 1
    elif tag in ("ul", "ol"):
        start = element.get("start", "1")
        dashed = tag == "ul" or not writer.numbered
        writer.items.append(None if dashed else int(start) if re.fullmatch(r"-?\d{1,9}", start) else 1)
    elif tag == "li":
        number = writer.items[-1] if writer.items else None
        value = element.get("value", "")
        if number is not None:
            number = int(value) if re.fullmatch(r"-?\d{1,9}", value) else number
            writer.items[-1] = number + 1
        indent = "  " * (len(writer.items) - 1)
        writer.mark = indent + ("- " if number is None else f"{number}. ")
    elif tag == "input" and element.get("type") in ("checkbox", "radio"):
        writer.pieces.append("[x] " if element.get("checked") is not None else "[ ] ")


def _end(writer: _Writer, tag: str) -> None:
    if tag in BLOCKS:
        writer.end_block()
    if tag in CELLS:
        writer.end_cell()
    elif tag == "tr":
        writer.end_row()
    elif tag == "pre":
        writer.preformatted -= 1
    elif tag in ("ul", "ol"):
        writer.items.pop()
    elif tag == "li":
        writer.mark = ""


def _is_left_out(element: Any) -> bool:
    if element.tag in LEFT_OUT or element.get("role") in LEFT_OUT_ROLES:
        return True
    style = element.get("style", "").replace(" ", "").lower()
    return element.get("hidden") is not None or element.get("aria-hidden") == "true" or "display:none" in style
