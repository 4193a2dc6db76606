"""docs/settings.md, written from the types so that it cannot drift from them."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from mpt_serve.configuration.settings import Settings

__all__ = ["default_text", "settings_reference"]

_HEAD = """\
# Settings

The settings of mpt_serve stand under `args` of the application in `serve_config.yaml`. Unknown names, at any depth of
the file, are errors; `mpt-serve check serve_config.yaml` finds them without starting anything. Sizes take a number of
bytes or a unit: `512MiB`, `4GiB`.

This page is written by `mpt-serve docs settings`; the types in `mpt_serve/configuration/` are its source.
"""


def settings_reference() -> str:
    """Return the page as Markdown."""
    groups = {name: field for name, field in Settings.model_fields.items() if _is_group(field)}
    sections = [_HEAD, *_table("`args`", Settings, skip=groups)]
    for name, field in groups.items():
        sections += _table(f"`args.{name}`", field.annotation)  # type: ignore[arg-type]
    return "\n".join(sections) + "\n"


def _table(title: str, group: type[BaseModel], skip: dict[str, FieldInfo] | None = None) -> Iterator[str]:
    yield f"\n## {title}\n\n{group.__doc__}\n"
    yield "| setting | type | default | meaning |\n|---|---|---|---|"
    for name, schema in group.model_json_schema(mode="validation")["properties"].items():
        if skip is None or name not in skip:
            field = group.model_fields[name]
            yield f"| `{name}` | {_type_text(field, schema)} | {default_text(field)} | {field.description} |"


def _is_group(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _type_text(field: FieldInfo, schema: dict[str, Any]) -> str:
    if "ByteSize" in str(field.annotation):
        text = "size"
    else:
        options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
        text = " or ".join(_option_text(option) for option in options)
    return f"{text} or null" if any(o.get("type") == "null" for o in schema.get("anyOf", ())) else text


def _option_text(option: dict[str, Any]) -> str:
    if "enum" in option:
        return " or ".join(f"`{value}`" for value in option["enum"])
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{words} {option[key]:g}" for key, words in bounds.items() if key in option]
    return ", ".join([str(option["type"]), *limits])


def default_text(field: FieldInfo) -> str:
    """Return a setting's default as it is written in the file."""
    default = field.default
    if isinstance(default, ByteSize):
        return f"`{default.human_readable(separator='').replace('.0', '')}`"
    return "unset" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
