"""Tables of the keys of the configuration, from the pydantic models that check them.

A line `::: keys tokenuq_ml.config.train.TrainSpec` of a page becomes a heading, what the model says of itself, and one
row per key: what it may be, its default, and its meaning.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

MARK = re.compile(r"^::: keys (\S+)$", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)
_BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}
_PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any"}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace the marks of a page by tables."""
    here = {path.rpartition(".")[2] for path in MARK.findall(markdown)}
    return MARK.sub(lambda found: table(found[1], here), markdown)


def table(path: str, here: set[str]) -> str:
    """Return the section of a model as Markdown.

    Args:
        path: of the class, with its module.
        here: models that have a section on the same page, to which types link.
    """
    module, _, name = path.rpartition(".")
    model = getattr(import_module(module), name)
    about, _, arguments = (getdoc(model) or "").partition("\n\nArgs:\n")
    meanings = {key: " ".join(text.split()) for key, text in _ENTRY.findall(arguments)}
    rows = [
        f"| `{field.alias or key}` | {_type(field.annotation, field.metadata, here)} | {_default(field)} | "
        f"{_cell(meaning(model, key) or meanings.get(key, ''))} |"
        for key, field in model.model_fields.items()
        # What the loader sets is no key of the file.
        if key != "name"
    ]
    head = ["| key | is | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"### {name} {{ #{name.lower()} }}", "", about, "", *head, *rows, ""])


def meaning(model: type[BaseModel], key: str) -> str | None:
    """Return the description of a key: of the field, of a part of its type, or of the model that it is derived from."""
    fields = [one.model_fields[key] for one in model.__mro__ if key in getattr(one, "model_fields", {})]
    texts = (info.description for field in fields for info in (field, *_infos(field.annotation)))
    return next(filter(None, texts), None)


def _infos(kind: Any) -> Iterator[FieldInfo]:
    if get_origin(kind) is Annotated:
        yield from (one for one in kind.__metadata__ if isinstance(one, FieldInfo))
    for part in get_args(kind):
        yield from _infos(part)


def _type(kind: Any, metadata: Any, here: set[str]) -> str:
    """Return what values a key may have: words, choices, links to other sections."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(parts[0], [*metadata, *_flat(parts[1:])], here)
    if origin is Literal:
        text = ", ".join(f"`{part}`" for part in parts)
    elif origin in (Union, UnionType):
        text = " or ".join(_type(part, [], here) for part in parts if part is not NoneType)
    elif origin in (tuple, list, frozenset):
        text = f"list of {_type(parts[0], [], here)}"
    elif origin is dict or kind is dict:
        text = f"mapping to {_type(parts[1], [], here)}" if parts else "mapping"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        text = f"[{kind.__name__}](#{kind.__name__.lower()})" if kind.__name__ in here else kind.__name__
    else:
        text = _PLAIN.get(kind) or getattr(kind, "__name__", str(kind))
    bounds = [
        form.format(getattr(one, name)) for one in metadata for name, form in _BOUNDS.items() if hasattr(one, name)
    ]
    return f"{text} {', '.join(bounds)}" if bounds else text


def _flat(metadata: Any) -> list[Any]:
    return [part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == () or value == {}:
        return "—"
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{list(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    # `<name>` would be a tag that browsers do not show.
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
