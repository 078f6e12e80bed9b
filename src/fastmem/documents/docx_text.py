"""The text of a Word document: paragraphs, lists, tables, text boxes and notes in order, tracked changes as accepted.

mammoth makes HTML of what `word_xml` prepares, and `html_text` reads it. python-docx was tried: of a form with nested
tables it found 5 words, mammoth 1,377; it also leaves out content controls and text boxes. Not in the text: headers
and footers of pages, comments, and the numbers that Word computes for headings and lists.
"""

import io
import itertools
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from fastmem.documents.html_text import html_text
from fastmem.documents.word_xml import names_with_text, readable_xml, spaced

# A Word document is a zip archive. The largest of 35 real ones unpacks to 5 MB; a bomb to terabytes.
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_PARTS = 10_000

OLE_MAGIC = bytes.fromhex("d0cf11e0a1b11ae1")
NOTE = re.compile(r'<li id="(?:foot|end)note-[\w-]+"><p>')
BACK_TO_NOTE = re.compile(r' ?<a href="#(?:foot|end)note-ref-[\w-]+">↑</a>')
UNREAD = re.compile(r"An unrecognised element was ignored: (?:.*[:}])?(\w+)")
# They hold no text, but name a file that does.
FILES_INSIDE = {"altChunk", "subDoc"}


def docx_text(path: Path) -> tuple[str, list[str]]:
    """The text, and a note about elements that are not in it. Errors: `ValueError` that says why it cannot be read."""
    import mammoth

    with open(path, "rb") as file:
        if file.read(len(OLE_MAGIC)) == OLE_MAGIC:
            raise ValueError("it is encrypted, or from Word 97: save it as .docx without a password")
        try:
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
        except zipfile.BadZipFile as error:
            raise ValueError(f"it is damaged or not a Word document ({error})") from error
        # The size that a part states also bounds what zipfile unpacks of it.
        unpacked = sum(part.file_size for part in parts)
        if unpacked > MAX_UNPACKED_BYTES or len(parts) > MAX_PARTS:
            raise ValueError(
                f"it unpacks to {unpacked:,} bytes in {len(parts):,} parts, which is unusual for a document"
            )
        readable = _readable(file)
    made = mammoth.convert_to_html(readable, include_embedded_style_map=False, convert_image=lambda image: [])
    numbers = itertools.count(1)
    page = NOTE.sub(lambda found: f"{found[0]}[{next(numbers)}] ", BACK_TO_NOTE.sub("", made.value))
    return spaced(html_text(page.encode(), numbered=False)), _notes(made.messages, readable)


def _readable(file: IO[bytes]) -> IO[bytes]:
    """The XML of the archive, as mammoth reads it; no pictures."""
    readable = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(readable, "w") as new:
        for name in dict.fromkeys(archive.namelist()):
            if name.endswith(".xml"):
                new.writestr(name, readable_xml(archive.read(name)))
            elif name.endswith(".rels"):
                new.writestr(name, archive.read(name))
    return readable


def _notes(messages: Iterable[Any], readable: IO[bytes]) -> list[str]:
    """A note that names the elements that mammoth left out with text in them."""
    found = (UNREAD.fullmatch(message.message) for message in messages)
    names = {name[1] for name in found if name}
    left_out = names & FILES_INSIDE
    if names - left_out:
        with zipfile.ZipFile(readable) as archive:
            parts = [name for name in archive.namelist() if name.endswith(".xml")]
            left_out |= {name for part in parts for name in names_with_text(archive.read(part), names)}
    return [f"what Word stores as {', '.join(sorted(left_out))} is left out: save it as .pdf"] if left_out else []
