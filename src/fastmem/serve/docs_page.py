"""The page at /docs: the routes of the server as /openapi.json describes them. It loads nothing from elsewhere."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>FastMem: routes</title>
<link rel="stylesheet" href="page.css">
</head>
<body>
<main>
<header><h1>FastMem {version}</h1><p>The routes of this server. Types and limits of all fields are in
  <a href="openapi.json">openapi.json</a>, which tools and editors read.</p></header>
{routes}
</main>
</body>
</html>
"""


def docs_page(described: Mapping[str, Any]) -> str:
    """The page as HTML. described: the OpenAPI document."""
    routes = [
        _route(described, f"{method.upper()} {path}", operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    return _PAGE.format(version=escape(described["info"]["version"]), routes="\n".join(routes))


def _route(described: Mapping[str, Any], name: str, operation: Mapping[str, Any]) -> str:
    lines = [operation.get("description", ""), *_arguments(described, operation)]
    text = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return f'<section class="below"><h2><code>{escape(name)}</code></h2>{text}</section>'


def _arguments(described: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    """The names of the parameters of the query, and of the fields of the body."""
    query = [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
    if query:
        yield f"Query: {', '.join(query)}."
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = described["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        required = schema.get("required", ())
        yield f"Body: {', '.join(f if f in required else f'[{f}]' for f in schema['properties'])}."
