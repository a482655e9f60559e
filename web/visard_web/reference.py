"""The REST API's description as a page to read, made of its OpenAPI document: no script, and nothing from elsewhere.

The usual viewers of such documents are a megabyte of script and start with a line of it in the page, which the
content security policy forbids.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>{title}: REST API</title>
  <link rel="icon" href="static/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="static/base.css">
  <link rel="stylesheet" href="static/reference.css">
</head>
<body>
  <header class="bar">
    <p class="brand"><img src="static/icon.svg" alt="" width="32" height="32"> {title}</p>
    <a href="./">The page</a>
  </header>
  <main class="reference">
    <h1>REST API</h1>
    {introduction}
    <p>Programs read the same as <a href="openapi.json">openapi.json</a>.</p>
    <nav aria-label="Requests"><ul>{contents}</ul></nav>
    {operations}
    <h2>What answers are made of</h2>
    {schemas}
  </main>
</body>
</html>
"""


def reference_page(described: dict[str, Any]) -> str:
    """Write the page.

    Args:
        described: an OpenAPI document.
    """
    operations = [
        (method.upper(), path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    return _PAGE.format(
        title=escape(described["info"]["title"]),
        introduction="".join(f"<p>{escape(part)}</p>" for part in described["info"]["description"].split("\n\n")),
        contents="".join(
            f'<li><a href="#{operation["operationId"]}">{escape(operation["summary"])}</a></li>'
            for _, _, operation in operations
        ),
        operations="".join(_operation(*each) for each in operations),
        schemas="".join(_schema(name, schema) for name, schema in described["components"]["schemas"].items()),
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    sent = operation.get("requestBody", {})
    parts = [
        f'<section aria-labelledby="{operation["operationId"]}">',
        f'<h2 id="{operation["operationId"]}">{escape(operation["summary"])}</h2>',
        f"<p><code>{method} {escape(path)}</code></p>",
        f"<p>{_text(operation.get('description', ''))}</p>",
    ]
    if sent:
        parts += [f"<h3>What is sent</h3><p>{_text(sent['description'])}</p>", _kinds(sent["content"])]
    if parameters := operation.get("parameters"):
        rows = [
            (f"<code>{escape(each['name'])}</code>", f"{each['in']}: {_type(each['schema'])}", _said(each))
            for each in parameters
        ]
        parts += ["<h3>Parameters</h3>", _table(("Name", "Where and what", "Meaning"), rows)]
    answers = [
        (
            f"<code>{status}</code>",
            escape(answer["description"]) + _kinds(answer.get("content", {})),
            "".join(f"<p>{each}</p>" for each in (_headers(answer), _example(answer)) if each),
        )
        for status, answer in sorted(operation["responses"].items())
    ]
    return "".join([*parts, "<h3>Answers</h3>", _table(("Status", "What", "Headers, example"), answers), "</section>"])


def _schema(name: str, schema: dict[str, Any]) -> str:
    rows = [
        (f"<code>{escape(key)}</code>", _type(each), _said(each)) for key, each in schema.get("properties", {}).items()
    ]
    table = _table(("Name", "What", "Meaning"), rows)
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{_text(schema.get("description", ""))}</p>{table}'


def _type(schema: dict[str, Any]) -> str:
    """Say what values there are, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        said = " or ".join(f"<code>{escape(str(each))}</code>" for each in schema.get("enum", [schema.get("const")]))
    elif schema.get("type") == "array":
        said = f"list of {_type(schema.get('items', {}))}" if "items" in schema else "list"
    else:
        said = escape(str(schema.get("type", "anything")))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        said += f" from {low:g}" + ("" if high is None else f" to {high:g}")
    return said


def _text(text: str) -> str:
    """Write a description as a sentence, with what stands between backticks as code."""
    ended = text if not text or text.endswith((".", "?")) else f"{text}."
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(ended[:1].upper() + ended[1:]))


def _said(described: dict[str, Any]) -> str:
    schema = described.get("schema", described)
    said = [_text(described.get("description", ""))]
    if "default" in schema and schema["default"] not in (None, []):
        said.append(f"Default: <code>{escape(json.dumps(schema['default']))}</code>.")
    said += [f"Example: <code>{escape(str(each[0]))}</code>." for each in schema.get("examples", [])]
    return " ".join(filter(None, said))


def _kinds(content: dict[str, Any]) -> str:
    kinds = [f"<li><code>{escape(kind)}</code>{_body(each.get('schema', {}))}</li>" for kind, each in content.items()]
    return f"<ul>{''.join(kinds)}</ul>" if kinds else ""


def _body(schema: dict[str, Any]) -> str:
    return f": {_type(schema)}" if "$ref" in schema else ""


def _headers(answer: dict[str, Any]) -> str:
    headers = answer.get("headers", {}).items()
    return "<br>".join(f"<code>{escape(name)}</code>: {escape(each['description'])}" for name, each in headers)


def _example(answer: dict[str, Any]) -> str:
    examples = [each["example"] for each in answer.get("content", {}).values() if "example" in each]
    return f"<code>{escape(examples[0]['error'])}</code>: {escape(examples[0]['detail'])}" if examples else ""


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
