"""CNN-DM (arXiv 1704.04368): news articles with their highlights as the summary.

Also reads the files of context-aware decoding (xhan77/context-aware-decoding, arXiv 2305.14739). They have every row
twice, once for each branch of the contrast, and every article three times, for three samples. Greedy decoding gives
the same answer each time, which would make every interval too narrow, so each article is read once.
"""

from fastmem.lab.tasks.example import Example
from fastmem.lab.tasks.readers import Hub, Row
from fastmem.lab.tasks.row_schema import Schema, text
from fastmem.lab.tasks.summaries import summary_schema

# The parquet commit of 2024-01-18 that public projects pin; 11,490 test rows.
HUB = Hub(
    "abisee/cnn_dailymail",
    split="test",
    revision="96df5e686bee6baa90b8bee7c28b81fa3fa6223d",
    config="3.0.0",
)

INSTRUCTION = "Summarize the above article in 3 sentences."
_SAMPLES = 3  # rows per article in those files: input_index 0, 1 and 2 are one article, and so on


def _first_sample(row: Row) -> Example | None:
    if row.values["assigned_process"] != 0 or int(row.values["input_index"]) % _SAMPLES:
        return None
    return Example("", "summary", text(row, "article"), INSTRUCTION, (text(row, "gold_answers").strip(),))


SCHEMAS = (
    summary_schema("the hub's", "article", "highlights", INSTRUCTION),
    summary_schema("the paper's", "article", "summary", INSTRUCTION),
    Schema(
        "context-aware decoding's",
        ("article", "gold_answers", "assigned_process", "input_index"),
        _first_sample,
    ),
)
