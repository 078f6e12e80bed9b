"""Documents from files: text, Markdown, HTML, PDF and Word, one by one or a folder at once. Needs no torch.

    from fastmem.documents import read_documents
    found = read_documents("policies")
    [document.name for document in found.documents]
    [(skipped.name, skipped.reason) for skipped in found.skipped]

HTML, PDF and Word files need `pip install 'fastmem[documents]'`.
"""

from fastmem.documents.document_files import (
    Document,
    DocumentFile,
    Documents,
    Skipped,
    find_documents,
    read_document,
    read_documents,
)
from fastmem.documents.document_parts import document_parts, fitting_part, sentences
from fastmem.documents.word_ranking import word_scores

__all__ = [
    "Document",
    "DocumentFile",
    "Documents",
    "Skipped",
    "document_parts",
    "find_documents",
    "fitting_part",
    "read_document",
    "read_documents",
    "sentences",
    "word_scores",
]
