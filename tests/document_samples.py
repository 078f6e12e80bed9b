"""PDF and Word files for tests, byte by byte, without a library that writes them."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

# PDF 1.7, 7.6.3.3: what fills up a password.
PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
FILE_ID = b"0123456789abcdef"
PERMISSIONS = -44

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
RELATIONSHIPS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"


@dataclass(frozen=True)
class Picture:
    """A page that is one picture, as a scanner makes it."""


def pdf(pages: Sequence[str | Picture], *, password: bytes | None = None) -> bytes:
    """A PDF file; each line of a page is printed on a line.

    password: encrypts the file (RC4, 40 bits); with an empty one it opens by itself.
    """
    count = len(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(count))
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    }
    key = _key(password) if password is not None else None
    for i, page in enumerate(pages):
        resources = b"<< /Font << /F 3 0 R >> >>"
        objects[4 + 2 * i] = (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources "
            + resources
            + f" /Contents {5 + 2 * i} 0 R >>".encode()
        )
        objects[5 + 2 * i] = _stream(_drawn(page), 5 + 2 * i, key)
    trailer = ""
    if password is not None and key is not None:
        entries = f"/O <{_owner(password).hex()}> /U <{_rc4(key, PADDING).hex()}> /P {PERMISSIONS}"
        trailer = f"/Encrypt << /Filter /Standard /V 1 /R 2 {entries} >> /ID [<{FILE_ID.hex()}> <{FILE_ID.hex()}>]"
    return pdf_of(objects, trailer)


def pdf_of(objects: dict[int, bytes], trailer: str = "") -> bytes:
    """A PDF file of numbered objects; 1 is the catalog."""
    out, places = io.BytesIO(), {}
    out.write(b"%PDF-1.7\n")
    for number, content in objects.items():
        places[number] = out.tell()
        out.write(f"{number} 0 obj\n".encode() + content + b"\nendobj\n")
    start, size = out.tell(), max(objects) + 1
    out.write(f"xref\n0 {size}\n0000000000 65535 f \n".encode())
    for number in range(1, size):
        out.write(f"{places.get(number, 0):010d} 00000 {'n' if number in places else 'f'} \n".encode())
    out.write(f"trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode())
    return out.getvalue()


def _drawn(page: str | Picture) -> bytes:
    if isinstance(page, Picture):
        return b"q 500 0 0 700 40 40 cm BI /W 1 /H 1 /CS /G /BPC 8 ID \x80 EI Q"
    lines = [line.translate(str.maketrans({c: f"\\{c}" for c in "\\()"})) for line in page.split("\n")]
    return b"BT /F 12 Tf 14 TL 60 780 Td " + b" ".join(f"({line}) Tj T*".encode("cp1252") for line in lines) + b" ET"


def _stream(data: bytes, number: int, key: bytes | None) -> bytes:
    if key is not None:
        data = _rc4(hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[: len(key) + 5], data)
    return f"<< /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream"


def _owner(password: bytes) -> bytes:
    return _rc4(hashlib.md5((password + PADDING)[:32]).digest()[:5], (password + PADDING)[:32])


def _key(password: bytes) -> bytes:
    allowed = PERMISSIONS.to_bytes(4, "little", signed=True)
    return hashlib.md5((password + PADDING)[:32] + _owner(password) + allowed + FILE_ID).digest()[:5]


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def docx(body: str, **parts: str) -> bytes:
    """A Word file. body: WordprocessingML. parts: further parts of the folder `word`, such as footnotes."""
    related = "".join(
        f'<Relationship Id="r{i}" Type="{RELATIONSHIPS}/{name}" Target="{name}.xml"/>' for i, name in enumerate(parts)
    )
    files = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
        f'<Relationship Id="a" Type="{RELATIONSHIPS}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">{related}</Relationships>',
        "word/document.xml": f"<w:document {WORD}><w:body>{body}</w:body></w:document>",
        **{f"word/{name}.xml": text for name, text in parts.items()},
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()


def paragraph(text: str) -> str:
    return f"<w:p>{run(text)}</w:p>"


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def table(*rows: Sequence[str]) -> str:
    cells = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"
