"""`fastmem.documents`: texts of files and folders, what is skipped and why, and files made to do harm."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import zipfile
from math import log
from pathlib import Path

import pytest

from document_samples import WORD, Picture, docx, paragraph, pdf, pdf_of, run, table
from fastmem.documents import document_files, find_documents, read_document, read_documents, text_process, word_scores
from fastmem.documents.docx_text import MAX_UNPACKED_BYTES
from fastmem.documents.html_text import html_text
from fastmem.documents.pdf_text import without_line_end_hyphens
from fastmem.documents.text_process import TextProcess
from fastmem.documents.word_ranking import words
from fastmem.errors import DocumentError, InputError

LEAVE = "Everyone has 27 days of annual leave."


def refused(path: Path) -> str:
    """The reason why a file cannot be read."""
    with pytest.raises(DocumentError) as caught:
        read_document(path)
    assert str(caught.value) == f"{path.name} cannot be read: {caught.value.reason}."
    assert "\n" not in str(caught.value)
    return caught.value.reason


def text_of(tmp_path: Path, name: str, data: bytes) -> str:
    (tmp_path / name).write_bytes(data)
    return read_document(tmp_path / name).text


# A folder.


def test_every_format_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text(f" {LEAVE}\r\n", newline="")
    (tmp_path / "a.MD").write_text(f"# Leave\n\n- {LEAVE}\n")
    (tmp_path / "sub" / "c.html").write_text(f"<p>{LEAVE}</p>")
    (tmp_path / "d.pdf").write_bytes(pdf([LEAVE]))
    (tmp_path / "e.docx").write_bytes(docx(paragraph(LEAVE)))
    (tmp_path / "f.png").write_bytes(b"\x89PNG")
    told: list[tuple[str, int, int]] = []
    found = read_documents(tmp_path, on_file=lambda *one: told.append(one))
    names = ["a.MD", "b.txt", "d.pdf", "e.docx", "sub/c.html"]
    assert [document.name for document in found.documents] == names
    assert told == [(name, i, 5) for i, name in enumerate(names, 1)]
    texts = {document.name: document.text for document in found.documents}
    assert texts["a.MD"] == f"# Leave\n\n- {LEAVE}\n", "Markdown as it is"
    assert texts["b.txt"] == f" {LEAVE}\r\n", "text as it is"
    assert {texts[name] for name in ("d.pdf", "e.docx", "sub/c.html")} == {LEAVE}
    assert [(one.name, one.reason) for one in found.skipped] == [("f.png", ".png files are not read")]
    for document in found.documents:
        assert document.digest == hashlib.sha256(document.text.encode()).hexdigest()
        assert document.path == tmp_path / document.name
    one = read_documents(tmp_path / "d.pdf")
    assert [document.name for document in one.documents] == ["d.pdf"]


def test_the_folder_of_a_stranger(tmp_path: Path) -> None:
    folder = tmp_path / "my policies"
    (folder / "old stuff").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / ".git").mkdir()
    (folder / ".git" / "config.txt").write_text("hidden")
    for name in (".DS_Store", "~$leave.docx", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"\0")
    (tmp_path / "outside.txt").write_text("outside")
    texts = {
        "leave.txt": LEAVE.encode(),
        "with BOM.txt": LEAVE.encode("utf-8-sig"),
        "notepad.txt": LEAVE.encode("utf-16"),
        "old stuff/Übersicht – 2024.md": LEAVE.encode(),
        ".real/linked.md": LEAVE.encode(),
    }
    for name, data in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    reasons = {
        "kantine.txt": ("Menü".encode("cp1252"), "byte 0xfc at position 3 is not UTF-8: save it as UTF-8"),
        "zeros.txt": (b"a\0b", "it contains zero bytes"),
        "really.txt": (pdf([LEAVE]), "it is a PDF file: give it a name that ends in .pdf"),
        "nothing.txt": (b"", "it is empty"),
        "blank.txt": (b" \n\t", "it contains no text"),
        "photo.JPG": (b"x", ".jpg files are not read"),
        "README": (b"x", "files without an ending are not read"),
        "contract.doc": (b"x", ".doc files are not read; save it as .docx or .pdf"),
        "slides.pptx": (b"x", ".pptx files are not read; save it as .pdf"),
    }
    for name, (data, _) in reasons.items():
        (folder / name).write_bytes(data)
    expected = {name: reason for name, (_, reason) in reasons.items()}
    links = {
        "dangling.txt": ("nowhere.txt", "it is a link to a file that does not exist"),
        "leaves.txt": ("../outside.txt", "it is a link that leaves the folder"),
        "up": ("..", "it is a link that leaves the folder"),
        "again.txt": ("leave.txt", "it is a link to leave.txt"),
        "older": ("old stuff", "it is a link to a folder"),
        "itself.txt": ("itself.txt", "it is a link to a file that does not exist"),
        "mounted.md": (".real/linked.md", None),  # as Kubernetes mounts files
    }
    for name, (target, reason) in links.items():
        (folder / name).symlink_to(target)
        expected |= {name: reason} if reason else {}
    os.mkfifo(folder / "pipe.txt")
    expected["pipe.txt"] = "it is not a regular file"
    strange = os.fsencode(folder) + b"/caf\xe9\n\x1b[31m.txt"
    with open(strange, "w") as file:
        file.write(LEAVE)

    found = read_documents(folder)
    assert {one.name: one.reason for one in found.skipped} == expected
    assert [one.name for one in found.skipped] == sorted(expected)
    assert [document.name for document in found.documents] == [
        "caf\ufffd\ufffd\ufffd[31m.txt",
        "leave.txt",
        "mounted.md",
        "notepad.txt",
        "old stuff/Übersicht – 2024.md",
        "with BOM.txt",
    ]
    assert {document.text for document in found.documents} == {LEAVE}
    assert read_documents(folder) == found, "in the same order every time"


def test_a_folder_without_documents(tmp_path: Path) -> None:
    assert read_documents(tmp_path) == document_files.Documents((), ())
    (tmp_path / "a.jpg").touch()
    assert [one.name for one in read_documents(tmp_path).skipped] == ["a.jpg"]
    with pytest.raises(InputError, match="does not exist: give a folder of documents"):
        read_documents(tmp_path / "absent")
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match="is not a folder: give a folder of documents"):
        find_documents(tmp_path / "a.txt")


def test_a_folder_inside_can_be_left_out(tmp_path: Path) -> None:
    for name in ("a.txt", "memories/b.txt", "sub/memories/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(LEAVE)
    found, _ = find_documents(tmp_path, exclude=tmp_path / "memories")
    assert [file.name for file in found] == ["a.txt", "sub/memories/c.txt"]


def test_deep_folders(tmp_path: Path) -> None:
    """Deeper than Python's recursion limit, and than the longest path that can be opened."""
    deep, here = 2100, os.open(tmp_path, os.O_RDONLY)
    for _ in range(deep):
        os.mkdir("d", dir_fd=here)
        inside = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inside
    os.close(here)
    found, skipped = find_documents(tmp_path)
    assert found == []
    assert [one.reason for one in skipped] == ["the folder cannot be read (File name too long)"]
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_bounds_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("x" * 10)
    monkeypatch.setattr(document_files, "MAX_FILES", 4)
    monkeypatch.setattr(document_files, "MAX_TOTAL_CHARACTERS", 40)
    assert len(read_documents(tmp_path).documents) == 4
    (tmp_path / "3.txt").write_text("x" * 11)
    with pytest.raises(InputError, match="contains more than 40 characters: give a smaller folder"):
        read_documents(tmp_path)
    (tmp_path / "photo.png").touch()
    with pytest.raises(InputError, match="contains more than 4 files and folders: give a smaller folder"):
        read_documents(tmp_path)


@pytest.mark.parametrize(("name", "largest"), [("a.txt", 16 * 2**20), ("a.html", 16 * 2**20), ("a.pdf", 100 * 2**20)])
def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path, name: str, largest: int) -> None:
    with open(tmp_path / name, "wb") as file:
        file.truncate(largest + 1)
    assert refused(tmp_path / name) == f"it has {largest + 1:,} bytes; up to {largest:,} are read"


def test_a_text_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_files, "MAX_CHARACTERS", 10)
    (tmp_path / "a.txt").write_text("x" * 11)
    assert refused(tmp_path / "a.txt") == "its text has more than 10 characters"


# HTML.


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>One\n  two</p>three<div>four<div>five</div>six</div>", "One two\n\nthree\n\nfour\n\nfive\n\nsix"),
        ("a<b>b</b><i> c</i><br>d", "ab c\nd"),
        ("<script>x</script>a<style>y</style>b<noscript>z</noscript>", "ab"),
        ("<nav>Home</nav>after<div role=navigation>Menu</div><h1>Leave</h1>", "after\n\nLeave"),
        ("<p hidden>a</p><p style='display: none'>b</p><p aria-hidden=true>c</p>d", "d"),
        ("Price <s>10</s><del>11</del> 12", "Price 12"),
        ("<header>Top</header><main>Main</main><aside>Side</aside><footer>End</footer>", "Top\n\nMain\n\nSide\n\nEnd"),
        ("<ul><li>a<li>b<ol start=3><li>c<li value=9>d<li>e</ol></ul>f", "- a\n- b\n  3. c\n  9. d\n  10. e\n\nf"),
        ("<table><tr><th>a<th>b<tr><td>c<td></table>", "a | b\nc |"),
        ("<table><tr><td><p>a</p><p>b</p><td>c<br>d</table>", "a / b | c / d"),
        ("<table><tr><td><h1>a</h1><p>b</p></table>", "a\n\nb"),
        ("<table><tr><td>a<table><tr><td>b<td>c<tr><td>d<td>e</table><td>f</table>", "a\n\nb | c\nd | e\n\nf"),
        ("<pre>  a\n    b</pre>", "  a\n    b"),
        ("<input type=checkbox checked>yes <input type=radio>no <button>Send</button>", "[x] yes [ ] no"),
        ("&lt;b&gt; &amp;amp; &copy;", "<b> &amp; ©"),
        ("<title>Leave</title><p>Days", "Leave\n\nDays"),
        ("<title>Leave</title><h1>Leave</h1>", "Leave"),
        ("<!-- a --><?php b ?>c", "c"),
        ("<!-- nothing -->", ""),
        ("<p>unclosed <b>tags", "unclosed tags"),
        ("</p></div>stray", "stray"),
        ("<li>no list<td>no table</li><tr><td>x", "- no list\n\nno table\n\nx"),
    ],
)
def test_html(page: str, text: str) -> None:
    assert html_text(page.encode()) == text


def test_a_long_row_is_a_layout() -> None:
    page = f"<table><tr><td>{'left ' * 150}<td>{'right ' * 150}</table>"
    assert html_text(page.encode()) == f"{'left ' * 150}".strip() + "\n\n" + f"{'right ' * 150}".strip()


@pytest.mark.parametrize(
    "data",
    [
        "<p>café €</p>".encode(),
        "<meta charset=iso-8859-1><p>café €</p>".encode("cp1252"),
        '<?xml version="1.0" encoding="windows-1252"?><html><p>café €</p></html>'.encode("cp1252"),
        '<meta http-equiv="Content-Type" content="text/html; charset=cp1252">café €'.encode("cp1252"),
        "<meta charset=utf-16><p>café €</p>".encode(),
        "<meta charset=nonsense><p>café €</p>".encode(),
        "<meta charset=hex><p>café €</p>".encode(),
        "<p>café €</p>".encode("utf-16"),
        "<p>café €</p>".encode("utf-8-sig"),
    ],
)
def test_the_charset_of_html(data: bytes) -> None:
    assert html_text(data) == "café €"


@pytest.mark.parametrize(
    ("charset", "encoding", "text"),
    [
        ("shift_jis", "cp932", "① 髙島"),
        ("x-sjis", "cp932", "① 髙島"),
        ("Windows-31J", "cp932", "① 髙島"),
        ("gb2312", "gb18030", "朱镕基"),
        ("GBK", "gb18030", "朱镕基 㐀"),
        ("x-gbk", "gb18030", "朱镕基 㐀"),
        ("euc-kr", "cp949", "똠방각하"),
        ("ks_c_5601-1987", "cp949", "똠방각하"),
        ("windows-949", "cp949", "똠방각하"),
        ("big5", "big5hkscs", "香港嘅 碁"),
        ("iso-8859-9", "cp1254", "ığ “x” €"),
        ("tis-620", "cp874", "ไทย “x” €"),
        ("iso-8859-11", "cp874", "ไทย “x” €"),
        ("windows-874", "cp874", "ไทย “x” €"),
    ],
)
def test_charsets_that_browsers_read_as_their_supersets(charset: str, encoding: str, text: str) -> None:
    assert html_text(f"<meta charset={charset}><p>{text}</p>".encode(encoding)) == text


def test_html_in_another_encoding_than_it_says(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes("<p>café".encode("cp1252"))
    assert refused(tmp_path / "a.html") == "it names no charset, and byte 0xe9 at position 6 is not UTF-8"
    (tmp_path / "a.html").write_bytes("<meta charset=ascii><meta charset=utf-8><p>\x81".encode("latin-1"))
    assert refused(tmp_path / "a.html").startswith("it says its charset is cp1252, and byte 0x81")


@pytest.mark.parametrize("tag", ["<div>", "<b>", "<table><tr><td>", "<ul><li>"])
def test_deeply_nested_html(tmp_path: Path, tag: str) -> None:
    (tmp_path / "deep.html").write_text(tag * 200_000 + "text")
    assert refused(tmp_path / "deep.html") == "its elements are nested more than 2,000 deep"
    times = 2_000 // tag.count("<")
    assert text_of(tmp_path, "less.html", (tag * times + "text").encode()).endswith("text")


# Word.


def test_word(tmp_path: Path) -> None:
    inserted = (
        f"<w:p>{run('Notice: ')}<w:ins>{run('three')}</w:ins><w:del><w:r><w:delText>two</w:delText></w:r></w:del>"
    )
    control = f"<w:sdt><w:sdtContent>{paragraph('In a control.')}</w:sdtContent></w:sdt>"
    box = f"<v:textbox><w:txbxContent>{paragraph('In a box.')}</w:txbxContent></v:textbox>"
    box = f"<w:p><w:r><w:pict><v:shape xmlns:v='urn:schemas-microsoft-com:vml'>{box}</v:shape></w:pict></w:r></w:p>"
    noted = f'<w:p>{run("Paid leave")}<w:r><w:footnoteReference w:id="7"/></w:r></w:p>'
    struck = f"<w:p><w:r><w:rPr><w:strike/></w:rPr><w:t>25 days</w:t></w:r>{run(' 27 days')}</w:p>"
    body = (
        paragraph("A &lt;b&gt; &amp; c") + table(("Grade", "Days"), ("A", "27")) + inserted + f"{run(' months')}</w:p>"
    )
    data = docx(
        body + control + box + noted + struck,
        footnotes=f'<w:footnotes {WORD}><w:footnote w:id="7">{paragraph("Since 2020.")}</w:footnote></w:footnotes>',
    )
    assert text_of(tmp_path, "a.docx", data).split("\n\n") == [
        "A <b> & c",
        "Grade | Days\nA | 27",
        "Notice: three months",
        "In a control.",
        "In a box.",
        "Paid leave[1]",
        "27 days",
        "- [1] Since 2020.",
    ]


MATH = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'


def symbols(text: str) -> str:
    """A run of an equation."""
    return f"<m:r><m:rPr><m:sty m:val='p'/></m:rPr><w:rPr><w:b/></w:rPr><m:t>{text}</m:t></m:r>"


def matrix(*cells: str) -> str:
    return "<m:mr>" + "".join(f"<m:e>{symbols(cell)}</m:e>" for cell in cells) + "</m:mr>"


FRACTION = f"<m:f><m:num>{symbols('1')}</m:num><m:den>{symbols('a+b')}</m:den></m:f>"
HALF = f"<m:f><m:num>{symbols('1')}</m:num><m:den>{symbols('2')}</m:den></m:f>"
POWER = f"<m:sSup><m:e>{symbols('x')}</m:e><m:sup>{symbols('12')}</m:sup></m:sSup>"


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        (f'<w:fldSimple w:instr="DATE"><w:fldData>AAA=</w:fldData>{run("12 March")}</w:fldSimple>', "12 March"),
        (f'<w:fldSimple w:instr="A"><w:fldSimple w:instr="B">{run("both")}</w:fldSimple></w:fldSimple>', "both"),
        (f'<w:hyperlink w:anchor="a"><w:fldSimple w:instr="REF">{run("here")}</w:fldSimple></w:hyperlink>', "here"),
        (f'<w:bdo w:val="rtl">{run("שלום")}</w:bdo>', "שלום"),
        (f'<w:dir w:val="rtl">{run("שלום")}</w:dir>', "שלום"),
        ("<w:r><w:t>one</w:t><w:cr/><w:t>two</w:t></w:r>", "one\ntwo"),
        (f"<w:r><w:ruby><w:rt>{run('とう')}</w:rt><w:rubyBase>{run('東')}</w:rubyBase></w:ruby></w:r>", "東"),
        (f"<m:oMath {MATH}>{symbols('E=mc')}</m:oMath>", "E=mc"),
        (f"<m:oMathPara {MATH}><m:oMath>{symbols('a&lt;b')}</m:oMath></m:oMathPara>", "a<b"),
        (f"<m:oMath {MATH}>{FRACTION}</m:oMath>", "1/(a+b)"),
        (f"<m:oMath {MATH}>{POWER}</m:oMath>", "x^12"),
        (
            f"<m:oMath {MATH}><m:sSub><m:e>{symbols('x')}</m:e><m:sub>{FRACTION}</m:sub></m:sSub></m:oMath>",
            "x_(1/(a+b))",
        ),
        (f"<m:oMath {MATH}>{symbols('f')}<m:d><m:e>{symbols('x')}</m:e></m:d></m:oMath>", "f(x)"),
        (
            f"<m:oMath {MATH}><m:d><m:dPr><m:begChr m:val='['/><m:sepChr m:val=';'/><m:endChr m:val=''/></m:dPr>"
            f"<m:e>{symbols('x')}</m:e><m:e>{symbols('y')}</m:e></m:d></m:oMath>",
            "[x;y",
        ),
        (
            f"<m:oMath {MATH}><m:nary><m:naryPr><m:chr m:val='∑'/></m:naryPr><m:sub>{symbols('i=1')}</m:sub>"
            f"<m:sup>{symbols('n')}</m:sup><m:e>{symbols('i')}</m:e></m:nary></m:oMath>",
            "∑_(i=1)^n i",
        ),
        (f"<m:oMath {MATH}><m:nary><m:sub/><m:sup/><m:e>{POWER}</m:e></m:nary></m:oMath>", "∫ x^12"),
        (f"<m:oMath {MATH}><m:rad><m:deg/><m:e>{symbols('a+b')}</m:e></m:rad></m:oMath>", "√(a+b)"),
        (
            f"<m:oMath {MATH}><m:func><m:fName>{symbols('sin')}</m:fName><m:e>{symbols('x')}</m:e></m:func></m:oMath>",
            "sin x",
        ),
        (f"{run('5')}<m:oMath {MATH}>{HALF}</m:oMath>{run('hours')}", "5 1/2 hours"),
        (f"<m:oMath {MATH}>{symbols('=')}{HALF}{symbols('+')}{HALF}</m:oMath>", "=1/2+1/2"),
        (
            f"<m:oMath {MATH}><m:d><m:e><m:m>{matrix('1', '0')}{matrix('-2', '3')}</m:m></m:e></m:d></m:oMath>",
            "(1, 0; -2, 3)",
        ),
        (
            f"<m:oMath {MATH}><m:eqArr><m:e>{symbols('x=1')}</m:e><m:e>{symbols('2y=3')}</m:e></m:eqArr></m:oMath>",
            "x=1; 2y=3",
        ),
        (
            f"<m:oMath {MATH}><m:func><m:fName><m:limLow><m:e>{symbols('lim')}</m:e><m:lim>{symbols('x→0')}</m:lim>"
            f"</m:limLow></m:fName><m:e>{symbols('x')}</m:e></m:func></m:oMath>",
            "lim_(x→0) x",
        ),
        (
            f"<m:oMath {MATH}>{symbols('2')}<m:rad><m:deg>{symbols('3')}</m:deg>"
            f"<m:e>{symbols('8')}</m:e></m:rad></m:oMath>",
            "2√[3]8",
        ),
        (
            f"<m:oMath {MATH}><m:sSup><m:e>{symbols('x')}</m:e><m:sup>{HALF}</m:sup></m:sSup></m:oMath>",
            "x^(1/2)",
        ),
        (f"<m:oMath {MATH}><m:f><m:num>{HALF}</m:num><m:den>{HALF}</m:den></m:f></m:oMath>", "(1/2)/(1/2)"),
    ],
)
def test_fields_and_equations_of_word(tmp_path: Path, inside: str, text: str) -> None:
    body = f"<w:p>{run('[')}{inside}{run(']')}</w:p>"
    noted = f'<w:p>{run("So")}<w:r><w:footnoteReference w:id="7"/></w:r></w:p>'
    notes = f'<w:footnotes {WORD}><w:footnote w:id="7">{body}</w:footnote></w:footnotes>'
    path = tmp_path / "a.docx"
    path.write_bytes(docx(body + noted, footnotes=notes))
    document = read_document(path)
    assert document.text == f"[{text}]\n\nSo[1]\n\n- [1] [{text}]"
    assert document.notes == ()


def field(code: str, result: str | None = None) -> str:
    """A field as Word writes it: its code, which may hold other fields, and what it shows."""
    marks = [f'<w:r><w:fldChar w:fldCharType="{mark}"/></w:r>' for mark in ("begin", "separate", "end")]
    return marks[0] + code + (marks[1] + result if result is not None else "") + marks[2]


def code(text: str) -> str:
    return f"<w:r><w:instrText>{text}</w:instrText></w:r>"


def test_of_a_field_in_the_code_of_another_nothing_is_shown(tmp_path: Path) -> None:
    """A letter to many: { IF { MERGEFIELD Sex } = "M" "Mr" "Ms" } { MERGEFIELD Name }."""
    inner = field(code("MERGEFIELD Sex"), run("M"))
    letter = field(
        code("IF ") + inner + code(' = "M" ') + run("unseen"), run("Mr ") + field(code("NAME"), run("Lind"))
    )
    assert text_of(tmp_path, "a.docx", docx(f"<w:p>{letter}{run(' asks.')}</w:p>")) == "Mr Lind asks."
    over = f"<w:p>{field(code('TOC'), run('1 Pay') + '</w:p><w:p>' + run('2 Leave'))}</w:p>"
    assert text_of(tmp_path, "a.docx", docx(over)) == "1 Pay\n\n2 Leave"
    assert text_of(tmp_path, "a.docx", docx(f"<w:p>{field(inner)}{run('after')}</w:p>")) == "after"
    unclosed = f'<w:p><w:r><w:fldChar w:fldCharType="begin"/></w:r>{run("kept")}</w:p>'
    stray = f'<w:p><w:r><w:fldChar w:fldCharType="separate"/></w:r>{run("too")}</w:p>'
    assert text_of(tmp_path, "a.docx", docx(unclosed)) == "kept"
    assert text_of(tmp_path, "a.docx", docx(stray)) == "too"


def test_text_boxes_that_have_no_older_form(tmp_path: Path) -> None:
    """Word writes each twice, and mammoth reads the older form; others write a picture in its place, or none."""
    namespaces = (
        "xmlns:mc='http://schemas.openxmlformats.org/markup-compatibility/2006' xmlns:wps='urn:wps' xmlns:a='urn:a' "
        "xmlns:wp='http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing' xmlns:v='urn:v'"
    )

    def drawing(*texts: str) -> str:
        boxes = "".join(f"<wps:txbx><w:txbxContent>{paragraph(text)}</w:txbxContent></wps:txbx>" for text in texts)
        graphic = f"<a:graphic><a:graphicData><wps:wsp>{boxes}</wps:wsp></a:graphicData></a:graphic>"
        return f"<w:drawing><wp:anchor><wp:docPr id='1' name='Box'/>{graphic}</wp:anchor></w:drawing>"

    def either(fallback: str) -> str:
        choice = f"<mc:Choice Requires='wps'>{drawing('Box')}</mc:Choice>"
        return f"<mc:AlternateContent>{choice}{fallback}</mc:AlternateContent>"

    older = f"<w:pict><v:textbox xmlns:v='urn:schemas-microsoft-com:vml'><w:txbxContent>{paragraph('Box')}"
    older += "</w:txbxContent></v:textbox></w:pict>"
    for inside, found in (
        (either(f"<mc:Fallback>{older}</mc:Fallback>"), "Before after\n\nBox"),
        (either(f"<mc:Fallback>{drawing()}</mc:Fallback>"), "Before after\n\nBox"),
        (either(""), "Before after\n\nBox"),
        (drawing("One", "Two"), "Before after\n\nOne\n\nTwo"),
        (drawing(), "Before after"),
    ):
        body = f"<w:p {namespaces}>{run('Before ')}<w:r>{inside}</w:r>{run('after')}</w:p>"
        assert text_of(tmp_path, "a.docx", docx(body)) == found, inside


def test_strict_word_files(tmp_path: Path) -> None:
    """They have other namespaces; and an encoding and prefixes of their own."""
    body = f'<w:p>{run("On ")}<w:fldSimple w:instr="DATE">{run("Ü")}</w:fldSimple></w:p>'
    page = f"<x:document {WORD}><x:body>{body}</x:body></x:document>".replace("w:", "x:").replace("xmlns:w", "xmlns:x")
    page = page.replace(
        "http://schemas.openxmlformats.org/wordprocessingml/2006", "http://purl.oclc.org/ooxml/wordprocessingml"
    )
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(docx(""))) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            declared = '<?xml version="1.0" encoding="UTF-16"?>' + page
            new.writestr(name, declared.encode("utf-16") if name == "word/document.xml" else old.read(name))
    assert text_of(tmp_path, "a.docx", out.getvalue()) == "On Ü"


def test_what_is_left_out_of_a_word_file_is_noted(tmp_path: Path) -> None:
    box = f"<v:textbox><w:txbxContent>{paragraph('')}{paragraph('In an oval.')}</w:txbxContent></v:textbox>"
    shapes = f"<v:shape><v:stroke/><v:fill/></v:shape><v:oval>{box}</v:oval><v:oval/><v:line/>"
    drawn = f"<w:r><w:pict xmlns:v='urn:schemas-microsoft-com:vml'>{shapes}</w:pict></w:r>"
    silent = "<w:permStart/><w:customXml><w:customXmlPr/></w:customXml><w:r><w:separator/></w:r>"
    path = tmp_path / "a.docx"
    path.write_bytes(docx(f"<w:p>{run('Text')}{silent}{drawn}</w:p>", unused="not well-formed"))
    assert read_document(path).text == "Text"
    assert read_document(path).notes == ("what Word stores as oval is left out: save it as .pdf",)
    path.write_bytes(docx(f"<w:p>{run('Text')}{silent}{drawn * 2}</w:p><w:altChunk/>"))
    assert read_document(path).notes == ("what Word stores as altChunk, oval is left out: save it as .pdf",)
    path.write_bytes(docx(f"<w:p>{run('Text')}{silent}</w:p>"))
    assert read_document(path).notes == ()


def test_a_word_file_with_a_damaged_picture(tmp_path: Path) -> None:
    data = docx(paragraph(LEAVE))
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("word/media/image1.png", b"picture")
    assert text_of(tmp_path, "a.docx", out.getvalue().replace(b"picture", b"PICTURE")) == LEAVE


def test_numbers_that_word_computes_are_not_made_up(tmp_path: Path) -> None:
    level = '<w:lvl w:ilvl="0"><w:start w:val="4"/><w:numFmt w:val="decimal"/></w:lvl>'
    numbering = f'<w:numbering {WORD}><w:abstractNum w:abstractNumId="0">{level}</w:abstractNum>'
    numbering += '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num></w:numbering>'
    style = '<w:pPr><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr></w:pPr>'
    items = "".join(f"<w:p>{style}{run(text)}</w:p>" for text in ("four", "five"))
    assert text_of(tmp_path, "a.docx", docx(items, numbering=numbering)) == "- four\n- five"


def test_word_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + b"x" * 100)
    assert refused(path) == "it is encrypted, or from Word 97: save it as .docx without a password"
    path.write_bytes(b"no archive")
    assert refused(path).startswith("it is damaged or not a Word document (")
    whole = docx(paragraph(LEAVE))
    path.write_bytes(whole[: len(whole) // 2])
    assert refused(path).startswith("it is damaged or not a Word document (")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "another archive")
    assert refused(path).startswith("it is damaged (")
    path.write_bytes(docx("<w:p>"))
    assert refused(path).startswith("it is damaged (ExpatError: ")
    path.write_bytes(docx(""))
    assert refused(path) == "it contains no text"


def bomb(stated: int | None = None) -> bytes:
    """A Word file whose document unpacks to more than the bound. stated: the size its entries state instead."""
    out = io.BytesIO(docx(paragraph(LEAVE)))
    size = MAX_UNPACKED_BYTES + 2**20
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("word/footnotes.xml", "w") as part:
        for _ in range(size // 2**20):
            part.write(b" " * 2**20)
    data = out.getvalue()
    return data if stated is None else data.replace(struct.pack("<L", size), struct.pack("<L", stated))


def test_a_word_file_that_is_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.docx"
    path.write_bytes(bomb())
    assert path.stat().st_size < 2**20
    assert refused(path).startswith("it unpacks to 269,4")
    assert refused(path).endswith(" bytes in 5 parts, which is unusual for a document")
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "laugh"}">' for i in range(10))
    laughs = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(docx(paragraph("&e9;")))) as old, zipfile.ZipFile(laughs, "w") as new:
        for name in old.namelist():
            declared = f"<!DOCTYPE w:document [{entities}]>" if name == "word/document.xml" else ""
            new.writestr(name, declared + old.read(name).decode())
    path.write_bytes(laughs.getvalue())
    assert refused(path).startswith("it is damaged (ExpatError: ")
    path.write_bytes(docx("<w:tbl><w:tr><w:tc>" * 5_000 + paragraph("x") + "</w:tc></w:tr></w:tbl>" * 5_000))
    assert refused(path) == "its parts are nested too deeply"


def test_a_zip_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    """zipfile unpacks no more of a part than it states: no bomb, and the check sum is wrong."""
    path = tmp_path / "bomb.docx"
    path.write_bytes(bomb(stated=1000))
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("word/footnotes.xml").file_size == 1000
    assert text_or_reason(path) in (LEAVE, "it is damaged (BadZipFile: Bad CRC-32 for file 'word/footnotes.xml')")


def text_or_reason(path: Path, process: TextProcess | None = None) -> str:
    try:
        return read_document(path, process=process).text
    except DocumentError as error:
        return error.reason


# PDF.


def test_pdf(tmp_path: Path) -> None:
    pages = ["Leave (all grades)\nEveryone has 27 days\nof café \x80 leave.", "Second page."]
    text = text_of(tmp_path, "a.pdf", pdf([page.replace("\x80", "€") for page in pages]))
    assert text == "Leave (all grades)\nEveryone has 27 days\nof café € leave.\nSecond page."


def test_words_that_a_line_end_divides_in_a_pdf(tmp_path: Path) -> None:
    text = text_of(tmp_path, "a.pdf", pdf(["The regu-\nlation of long-term care, long-\nterm and Anglo-\nSaxon."]))
    assert text == "The regulation of long-term care, long-term and Anglo-Saxon."


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("encod|ing", "encoding"),
        ("long|term is long-term", "long-term is long-term"),
        ("long|term is a long word of a term", "long-term is a long word of a term"),
        ("to|day as today, to the day", "today as today, to the day"),
        ("state-of|the-art", "state-of-the-art"),
        ("COVID|19, Schwarz|Weiß", "COVID-19, Schwarz-Weiß"),
        ("a dash | alone |", "a dash - alone -"),
    ],
)
def test_hyphens_at_line_ends(text: str, mended: str) -> None:
    assert without_line_end_hyphens(text.replace("|", "\ufffe")) == mended


def test_an_endless_word_is_no_problem() -> None:
    assert without_line_end_hyphens("x" * 300_000 + "\ufffe") == "x" * 300_000 + "-"


def test_encrypted_pdf(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([LEAVE], password=b"secret"))
    assert refused(tmp_path / "a.pdf") == "it is encrypted: save a copy without the password"
    assert text_of(tmp_path, "b.pdf", pdf([LEAVE], password=b"")) == LEAVE, "protected against changes only"


def test_scanned_pdf(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([Picture(), Picture()]))
    assert refused(tmp_path / "a.pdf").startswith("it is a scanned PDF without text: run OCR on it first")
    (tmp_path / "b.pdf").write_bytes(pdf([LEAVE, Picture(), "", Picture()]))
    document = read_document(tmp_path / "b.pdf")
    assert document.text == LEAVE
    assert document.notes == ("pages 2, 4 are pictures without text: run OCR on it",)
    (tmp_path / "c.pdf").write_bytes(pdf(["", ""]))
    assert refused(tmp_path / "c.pdf") == "it contains no text"


def test_damaged_pdf(tmp_path: Path) -> None:
    whole = pdf([LEAVE])
    for data in (b"no PDF", b"%PDF-1.7\n", whole[:60]):
        (tmp_path / "a.pdf").write_bytes(data)
        assert refused(tmp_path / "a.pdf") == "it is damaged or not a PDF file"
    with TextProcess() as process:
        for at in range(len(whole)):  # read or refused, but never a crash
            (tmp_path / "a.pdf").write_bytes(whole[:at] + b"\xff\x00" + whole[at + 2 :])
            assert text_or_reason(tmp_path / "a.pdf", process) != "reading it crashes"


def test_pdf_page_trees_without_end(tmp_path: Path) -> None:
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>"
    catalog = b"<< /Type /Catalog /Pages 2 0 R >>"
    circle = {1: catalog, 2: b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 1000000000 >>"}
    chain = {1: catalog} | {i: f"<< /Type /Pages /Kids [{i + 1} 0 R] /Count 1 >>".encode() for i in range(2, 50_000)}
    twice = {1: catalog, 50: page} | {
        i: f"<< /Type /Pages /Kids [{i + 1} 0 R {i + 1} 0 R] /Count {2 ** (50 - i)} >>".encode() for i in range(2, 50)
    }
    reasons = set()
    for objects in (circle, chain, twice):
        (tmp_path / "a.pdf").write_bytes(pdf_of(objects))
        reasons.add(refused(tmp_path / "a.pdf"))
    assert all("pages; up to 10,000 are read" in r or "damaged" in r or "no text" in r for r in reasons), reasons


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read with at most 300 MB."""
    if sys.platform != "linux":
        pytest.skip("other systems do not limit the address space")
    less = "import fastmem.documents.extract_text as e\ne.MAX_MEMORY_BYTES = 300 * 2**20\nmain()"
    monkeypatch.setattr(text_process, "CODE", text_process.CODE.replace("\nmain()", f"\n{less}"))


def test_pdf_content_that_draws_itself(tmp_path: Path, little_memory: None) -> None:
    """pdfium 5.15.2 draws it until the memory ends."""
    form = b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 4 0 R >> >> /Length 12 >>"
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        3: b"<< /Type /Page /Parent 2 0 R /Resources << /XObject << /X 4 0 R >> >> /Contents 5 0 R >>",
        4: form + b"\nstream\n/X Do /X Do \nendstream",
        5: b"<< /Length 5 >>\nstream\n/X Do\nendstream",
    }
    (tmp_path / "a.pdf").write_bytes(pdf_of(objects))
    assert refused(tmp_path / "a.pdf") in ("it contains no text", "reading it crashes")


# The process that reads them.


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "page.html").write_text(f"<p>{LEAVE}")
    return tmp_path / "page.html"


def test_a_file_that_takes_too_long(page: Path) -> None:
    with TextProcess(seconds=1e-4) as process:
        with pytest.raises(DocumentError, match=r"reading it takes more than 0\.0001 seconds"):
            read_document(page, process=process)
        process._seconds = 60
        assert read_document(page, process=process).text == LEAVE, "the next file has a process of its own"


def test_a_file_that_crashes_the_library(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TextProcess() as process:
        with monkeypatch.context() as patched:
            patched.setattr(text_process, "CODE", "import os; input(); os.abort()")
            with pytest.raises(DocumentError, match="reading it crashes"):
                read_document(page, process=process)
        assert read_document(page, process=process).text == LEAVE


def test_a_file_that_takes_too_much_memory(tmp_path: Path, page: Path, little_memory: None) -> None:
    (tmp_path / "large.html").write_text("<p>x" * 3_000_000)
    with TextProcess() as process:
        with pytest.raises(DocumentError, match=r"reading it (takes more than .* of memory|crashes)|it is damaged"):
            read_document(tmp_path / "large.html", process=process)
        assert read_document(page, process=process).text == LEAVE


def test_modules_in_the_current_folder_are_not_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(page.parent)
    (page.parent / "json.py").write_text("open('ran', 'w')")
    assert read_document(page).text == LEAVE
    assert not (page.parent / "ran").exists()


def test_documents_need_no_torch() -> None:
    code = (
        "import sys, fastmem.documents; print([m for m in ('torch', 'numpy', 'lxml', 'mammoth') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# Ranking.


def test_word_scores() -> None:
    """Against the formula of BM25, by hand: k1 = 1.2, b = 0.75."""
    documents = ["Leave is leave.", "Travel, and more travel by taxi", "A taxi"]
    mean = (3 + 6 + 2) / 3

    def score(having: int, times: int, length: int) -> float:
        idf = log(1 + (3 - having + 0.5) / (having + 0.5))
        return idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / mean))

    expected = [score(1, 2, 3), score(2, 1, 6), score(2, 1, 2)]
    assert word_scores("LEAVE by-the taxi? Leave!", documents) == pytest.approx(
        [expected[0], expected[1] + score(1, 1, 6), expected[2]]
    )
    assert word_scores("nothing shared", documents) == [0, 0, 0]
    assert word_scores("?", documents) == [0, 0, 0]
    assert word_scores("leave", []) == []
    assert word_scores("leave", ["", "leave"])[0] == 0


@pytest.mark.parametrize(
    ("question", "text"),
    [("STRASSE", "Straße"), ("travel policy", "travel_policy.pdf"), ("年假有几天", "员工年假"), ("finance", "ﬁnance")],
)
def test_words_in_other_forms(question: str, text: str) -> None:
    assert word_scores(question, ["unrelated", text])[1] > 0


HINDI = ("हर कर्मचारी को साल में सत्ताईस दिन की छुट्टी मिलती है", "कार्यालय सुबह आठ बजे खुलता है")


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("कितनी छुट्टी मिलती है", *HINDI),
        ("कार्यालय कब खुलता है", *reversed(HINDI)),
        ("দিন", "প্রতি দিন ছুটি", "দান করুন, নদী দূরে"),
        ("விடுமுறை", "ஆண்டு விடுமுறை நாட்கள்", "வீடு மாறி முடிந்தது, றை"),
        ("ลา", "พนักงานลาได้ปีละ 27 วัน", "สำนักงานเปิดแปดนาฬิกา"),
        ("ລາພັກ", "ພະນັກງານລາພັກໄດ້ 27 ມື້", "ຫ້ອງການເປີດແປດໂມງ ກັນ"),
        ("ថ្ងៃឈប់", "បុគ្គលិកមានថ្ងៃឈប់សម្រាក ២៧", "ការិយាល័យបើកម៉ោងប្រាំបី"),
        ("ခွင့်ရက်", "ဝန်ထမ်းတိုင်းခွင့်ရက် ၂၇ ရက်ရှိသည်", "ရုံးကိုနံနက်ရှစ်နာရီတွင်ဖွင့်သည်"),
    ],
)
def test_words_of_scripts_with_vowel_signs(question: str, right: str, wrong: str) -> None:
    found = word_scores(question, [wrong, right])
    assert found[1] > found[0]


def test_words_are_letters_digits_and_their_marks() -> None:
    assert words("कर्मचारी की ২৭ দিন") == ["कर्मचारी", "की", "২৭", "দিন"]
    assert words("Zoë's 2_tier, naïve e\u0301te\u0301 q\u0323") == ["zoë", "s", "2", "tier", "naïve", "été", "q\u0323"]
    assert words("I \u2764\ufe0f it \u0301") == ["i", "it"], "a mark without a letter is no word"
    assert words("年假3天のX") == ["年", "假", "3", "天", "の", "x"]
    assert words("วันลา 27ก a") == ["วั", "ัน", "นล", "ลา", "27", "ก", "a"]
    assert words("၂၇ ရက်။") == ["၂၇", "ရက", "က်"]
    assert words("") == words("?!") == []
