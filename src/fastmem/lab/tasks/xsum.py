"""XSum (arXiv 1808.08745): BBC articles with a one-sentence summary."""

from fastmem.lab.tasks.readers import Hub
from fastmem.lab.tasks.summaries import summary_schema

# A branch, not a commit: the hub's main branch held a loading script for years, which `datasets` no longer runs, and
# its automatic parquet copy is overwritten in place. Every run records the commit that was loaded.
HUB = Hub("EdinburghNLP/xsum", split="test", revision="refs/convert/parquet")

INSTRUCTION = "Summarize the above article in 1 sentence."
SCHEMAS = (
    summary_schema("the hub's", "document", "summary", INSTRUCTION),
    summary_schema("the paper's", "article", "summary", INSTRUCTION),
    summary_schema("the paper's get_data.py", "text", "summary", INSTRUCTION),
)
