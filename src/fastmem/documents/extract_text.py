"""The process that takes the text out of HTML, PDF and Word files: a path per line in, a line of JSON per path out.

`text_process` starts it. It is a process of its own, since a file made for it can keep a library busy for hours, fill
the memory, or crash pdfium, which is written in C++.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

# Address space. What a page of 16 MB takes at most in lxml is about a half.
MAX_MEMORY_BYTES = 3 * 2**30

NEEDS_MEMORY = f"reading it takes more than {MAX_MEMORY_BYTES // 2**30} GB of memory"


def extracted(path: Path) -> tuple[str, list[str]]:
    """Text and notes. Errors: `ValueError` that says why; anything else means that the file is damaged."""
    ending = path.suffix.lower()
    if ending == ".pdf":
        from fastmem.documents.pdf_text import pdf_text

        return pdf_text(path)
    if ending == ".docx":
        from fastmem.documents.docx_text import docx_text

        return docx_text(path)
    from fastmem.documents.html_text import html_text

    return html_text(path.read_bytes()), []


def reply(path: Path) -> dict[str, Any]:
    """`text` and `notes`, or the `reason` why there are none."""
    try:
        text, notes = extracted(path)
        return {"text": text, "notes": notes}
    except MemoryError:
        return {"reason": NEEDS_MEMORY}
    except RecursionError:
        return {"reason": "its parts are nested too deeply"}
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            return {"reason": error.strerror}
        said = " ".join(str(error).split())[:200]
        return {"reason": said if type(error) is ValueError else f"it is damaged ({type(error).__name__}: {said})"}


def main() -> None:
    """Answer until standard input ends. What libraries print goes nowhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if sys.platform == "linux":  # macOS does not enforce this limit
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    for line in sys.stdin:
        print(json.dumps(reply(Path(json.loads(line)))), file=answers, flush=True)
