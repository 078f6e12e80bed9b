"""Fills in the reports' HTML templates, the `*.html.jinja` files beside this module."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from fastmem.lab.report.charts import Scale


def render(name: str, **values: object) -> str:
    """The template with its values filled in. Text is escaped; only `Markup` is taken as HTML."""
    return _template(name).render(values)


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["scale_around"] = Scale.around
    environment.filters["g"] = lambda number, digits=6: f"{number:.{digits}g}"
    return environment.get_template(name)
