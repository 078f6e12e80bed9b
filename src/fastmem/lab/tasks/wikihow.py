"""WikiHow (arXiv 1810.09305): how-to articles, summarized by the headings of their steps.

The hub has a loading script that `datasets` no longer runs, so the data are read from a file: `wikihowAll.csv` of
mahnazkoupaee/WikiHow-Dataset. As in the paper (IAAR-Shanghai/FastMem `eval/get_data.py`), the publisher's rules apply:
summaries of at least three quarters of the article's length are left out, stray commas are removed, and the summary is
in lower case. If the publisher's list of test titles, `all_test.txt`, is in the folder of the CSV, only those rows are
read.
"""

import re
from functools import lru_cache
from pathlib import Path

from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Row
from fastmem.lab.tasks.row_schema import Schema
from fastmem.lab.tasks.summaries import summary_schema

INSTRUCTION = "Summarize the above article in few steps using concise verb-object phrases directly."
_LONGEST_SUMMARY = 0.75  # of the article's characters


@lru_cache(maxsize=1)
def _test_titles(folder: Path) -> frozenset[str] | None:
    """The titles in `all_test.txt`, which have no spaces; None if there is no such file."""
    path = folder / "all_test.txt"
    return frozenset(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else None


def _from_csv(row: Row) -> Example | None:
    article, headline = row.values["text"] or "", row.values["headline"] or ""
    titles = _test_titles(row.path.parent) if row.path else None
    if titles is not None and row.values["title"].replace(" ", "") not in titles:
        return None
    if not headline.strip() or not article.strip() or len(headline) >= _LONGEST_SUMMARY * len(article):
        return None
    steps = [line for line in headline.replace(".,", ".").lower().splitlines() if line.strip()]
    article = re.sub(r"[.]+[\n]+[,]", ".\n", article)
    return Example("", "summary", article, INSTRUCTION, ("\n".join(steps),))


SCHEMAS = (
    Schema("the publisher's CSV", ("headline", "title", "text"), _from_csv),
    summary_schema("the paper's", "article", "summary", INSTRUCTION),
)
