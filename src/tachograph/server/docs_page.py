"""The page `/docs`: a description in OpenAPI as HTML that needs nothing from anywhere.

Knows OpenAPI; knows no route. Everything that comes from the description is escaped.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: #0a62c9; }
@media (prefers-color-scheme: dark) { :root { --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.55 system-ui, sans-serif; display: grid;
  grid-template-columns: 17rem minmax(0, 1fr); }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1.5rem 1rem;
  border-right: 1px solid var(--line); font-size: 13px; }
nav a { display: block; padding: .15rem .4rem; color: inherit; text-decoration: none;
  border-radius: 4px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
nav a:hover { background: var(--soft); }
nav h2 { margin: 1.2rem 0 .3rem .4rem; font-size: 12px; text-transform: uppercase;
  letter-spacing: .06em; opacity: .65; }
main { max-width: 58rem; padding: 1.5rem 2.5rem 6rem; }
h1 { margin: 0; } h1 small { font-weight: 400; opacity: .6; font-size: 1rem; }
main > h2 { margin: 3rem 0 0; padding-bottom: .3rem; border-bottom: 2px solid var(--line); }
section { padding: 1.4rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { margin: 0; font-size: 1.05rem; } h4 { margin: 1rem 0 .3rem; font-size: 13px; opacity: .7; }
p { margin: .5rem 0; } a { color: var(--link); }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { background: var(--soft); padding: .1em .3em; border-radius: 3px; }
pre { background: var(--soft); padding: .7rem .9rem; border-radius: 6px; overflow: auto;
  margin: .3rem 0; }
.path { display: flex; gap: .7rem; align-items: baseline; flex-wrap: wrap; }
.path code { background: none; padding: 0; font-size: 15px; font-weight: 600; }
.verb { font: 700 12px/1 ui-monospace, monospace; color: #fff; border-radius: 4px;
  padding: .35em .6em; }
.get { background: #1a7f37; } .post { background: #0a62c9; } .put { background: #9a6700; }
.head { background: #57606a; }
nav .verb { padding: .15em .35em; font-size: 9px; margin-right: .4em; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td { padding: .35rem .8rem .35rem 0; vertical-align: top; border-top: 1px solid var(--soft); }
td:first-child { white-space: nowrap; width: 12rem; }
summary { margin: .8rem 0 .3rem; font-size: 13px; cursor: pointer; }
.kind { opacity: .65; font-size: 13px; }
@media (max-width: 50rem) { body { display: block; } nav { position: static; height: auto;
  border: 0; border-bottom: 1px solid var(--line); } main { padding: 1.5rem 1rem 4rem; } }
"""
_VERBS = ("get", "head", "post", "put", "patch", "delete")


def render(description: Mapping[str, Any]) -> str:
    """The page."""
    info = description["info"]
    groups = [(tag, list(_operations(description, tag["name"]))) for tag in description["tags"]]
    parts = [
        f"<h1>{_e(info['title'])} <small>{_e(info['version'])}</small></h1>",
        _prose(info["description"]),
        '<p>For machines: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for tag, operations in groups:
        if operations:
            parts.append(f"<h2>{_e(tag['name'].capitalize())}</h2>{_prose(tag['description'])}")
            parts += [_operation(*operation) for operation in operations]
    parts.append("<h2>Shapes</h2>")
    schemas = description["components"]["schemas"]
    parts += [_shape(name, schema) for name, schema in schemas.items()]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(info['title'])}: the server's API</title><style>{_STYLE}</style></head>"
        f"<body>{_contents(groups, schemas)}<main>{''.join(parts)}</main></body></html>"
    )


_Operation = tuple[str, str, Mapping[str, Any]]


def _operations(description: Mapping[str, Any], tag: str) -> Iterator[_Operation]:
    for path, methods in description["paths"].items():
        for verb in _VERBS:
            if verb in methods and tag in methods[verb].get("tags", ()):
                yield verb, path, methods[verb]


def _contents(
    groups: list[tuple[Mapping[str, Any], list[_Operation]]], schemas: Mapping[str, Any]
) -> str:
    parts = []
    for tag, operations in groups:
        parts.append(f"<h2>{_e(tag['name'])}</h2>" if operations else "")
        for verb, path, _ in operations:
            link = f'<a href="#{_anchor(verb, path)}">{_verb(verb)}{_e(path)}</a>'
            parts.append(link)
    shapes = "".join(f'<a href="#{_e(name)}">{_e(name)}</a>' for name in schemas)
    return f"<nav>{''.join(parts)}<h2>Shapes</h2>{shapes}</nav>"


# ---------------------------------------------------------------------------- one operation


def _operation(verb: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [
        f'<section id="{_anchor(verb, path)}">',
        f'<div class="path">{_verb(verb)}<code>{_e(path)}</code>'
        f"<h3>{_e(operation.get('summary', ''))}</h3></div>",
        _prose(operation.get("description", "")),
    ]
    if parameters := operation.get("parameters"):
        parts.append(f"<h4>Parameters</h4>{_table(map(_parameter, parameters))}")
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]
        parts.append(f"<h4>Body</h4>{_table(map(_content, content.items()))}")
    answers = operation["responses"]
    fine = [status for status in answers if status.isdigit() and int(status) < 400]
    errors = [status for status in answers if status not in fine and status != "default"]
    parts.append(f"<h4>Answers</h4>{_table(_answer(one, answers[one]) for one in fine)}")
    codes = " ".join(f"<code>{_e(status)}</code>" for status in errors)
    meanings = _table(_answer(one, answers[one]) for one in errors)
    parts.append(f"<details><summary>Errors {codes}</summary>{meanings}</details></section>")
    return "".join(parts)


def _parameter(parameter: Mapping[str, Any]) -> tuple[str, str]:
    schema = parameter["schema"]
    said = [parameter["in"], _kind(schema)]
    said += ["required"] if parameter.get("required") and parameter["in"] != "path" else []
    said += (
        [f"default {json.dumps(schema['default'])}"] if schema.get("default") is not None else []
    )
    examples = "".join(f" For example <code>{_e(str(one))}</code>." for one in _examples(parameter))
    text = parameter.get("description") or schema.get("description", "")
    kind = f'<span class="kind">{_e(", ".join(said))}</span>'
    return f"<code>{_e(parameter['name'])}</code>", f"{kind}<br>{_inline(text)}{examples}"


def _content(pair: tuple[str, Mapping[str, Any]]) -> tuple[str, str]:
    media_type, content = pair
    return _e(media_type), _linked(content.get("schema", {}))


def _answer(status: str, answer: Mapping[str, Any]) -> tuple[str, str]:
    forms = "".join(
        f'<br><span class="kind">{_e(media_type)}</span> {_linked(content.get("schema", {}))}'
        for media_type, content in answer.get("content", {}).items()
        if int(status) < 400
    )
    return f"<code>{_e(status)}</code>", _inline(answer.get("description", "")) + forms


def _examples(parameter: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = parameter.get("schema", {}).get("examples", [])
    return found


# ---------------------------------------------------------------------------- shapes


def _shape(name: str, schema: Mapping[str, Any]) -> str:
    fields = [
        (f"<code>{_e(key)}</code>", f"{_linked(one)} {_inline(one.get('description', ''))}")
        for key, one in schema.get("properties", {}).items()
    ]
    examples = "".join(
        f"<pre>{_e(json.dumps(one, indent=None))}</pre>" for one in schema.get("examples", ())
    )
    about = _prose(schema.get("description", ""))
    return (
        f'<section id="{_e(name)}"><h3>{_e(name)}</h3>{about}{_table(fields)}{examples}</section>'
    )


def _linked(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{_e(name)}">{_e(name)}</a>'
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {_linked(schema['items'])}"
    return f'<span class="kind">{_e(_kind(schema))}</span>'


def _kind(schema: Mapping[str, Any]) -> str:
    """What values are, in few words."""
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(kinds)
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = schema.get("type", "any value")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return " or ".join(kind) if isinstance(kind, list) else str(schema.get("format", kind))


# ---------------------------------------------------------------------------- HTML


def _e(text: str) -> str:
    return html.escape(text)


def _verb(verb: str) -> str:
    return f'<span class="verb {_e(verb)}">{_e(verb.upper())}</span>'


def _anchor(verb: str, path: str) -> str:
    return _e(re.sub(r"[^a-z0-9]+", "-", f"{verb} {path}".lower()).strip("-"))


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _e(text))


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in re.split(r"\n\s*\n", text) if part.strip())


def _table(rows: Any) -> str:
    cells = "".join(f"<tr><td>{left}</td><td>{right}</td></tr>" for left, right in rows)
    return f"<table>{cells}</table>" if cells else ""
