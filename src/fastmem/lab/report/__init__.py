"""Reports: from the folders of runs to a Markdown table and one HTML page. Needs no model and no network."""

from fastmem.lab.report.page import page
from fastmem.lab.report.results import Results, load_results
from fastmem.lab.report.table import tables

__all__ = ["Results", "load_results", "page", "tables"]
