"""The text of a Word document: paragraphs, lists, tables, text boxes and notes in order, tracked changes as accepted.

mammoth makes HTML of it, which `html_text` reads. python-docx was tried: of a form with nested tables it found 5
words, mammoth 1,377; it also leaves out content controls and text boxes. Not in the text: headers and footers of
pages, comments, and the numbers that Word computes for headings and lists.
"""

import itertools
import re
import zipfile
from pathlib import Path

from fastmem.documents.html_text import html_text

# A Word document is a zip archive. The largest of 35 real ones unpacks to 5 MB; a bomb to terabytes.
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_PARTS = 10_000

OLE_MAGIC = bytes.fromhex("d0cf11e0a1b11ae1")
NOTE = re.compile(r'<li id="(?:foot|end)note-[\w-]+"><p>')
BACK_TO_NOTE = re.compile(r' ?<a href="#(?:foot|end)note-ref-[\w-]+">↑</a>')


def docx_text(path: Path) -> str:
    """Errors: `ValueError` that says why the file cannot be read."""
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
        file.seek(0)
        made = mammoth.convert_to_html(file, include_embedded_style_map=False, convert_image=lambda image: [])
    numbers = itertools.count(1)
    page = NOTE.sub(lambda found: f"{found[0]}[{next(numbers)}] ", BACK_TO_NOTE.sub("", made.value))
    return html_text(page.encode(), numbered=False)
