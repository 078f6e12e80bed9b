"""Text from the bytes of a text file: UTF-8, or UTF-16 and UTF-32 with a byte order mark. Nothing is guessed."""

import codecs

# UTF-32 before UTF-16, whose mark is the beginning of UTF-32's.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of_mark(data: bytes) -> str | None:
    """The encoding that a byte order mark at the beginning names."""
    return next((encoding for mark, encoding in MARKS.items() if data.startswith(mark)), None)


def plain_text(data: bytes) -> str:
    """Errors: `ValueError` that says why this is no text, without naming the file."""
    if data.startswith(b"%PDF-"):
        raise ValueError("it is a PDF file: give it a name that ends in .pdf")
    encoding = encoding_of_mark(data) or "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise ValueError(
            f"byte 0x{data[error.start]:02x} at position {error.start} is not {name}: save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError("it contains zero bytes")
    return text
