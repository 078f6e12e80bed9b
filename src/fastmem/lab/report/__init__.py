"""Reports on finished runs: a Markdown table and one HTML page, made from the runs' folders without a model."""

from fastmem.lab.report.page import page
from fastmem.lab.report.results import Results, load_results
from fastmem.lab.report.table import tables

__all__ = ["Results", "load_results", "page", "tables"]
