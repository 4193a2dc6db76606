"""Mistakes in a configuration, found and reported in one way for our settings and for Serve's own keys."""

import copy
import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mpt_serve.errors import MptServeError

__all__ = ["ConfigurationError", "Path", "Problem", "closest", "path_text", "schema_problems", "value_text"]

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is and what to change.

    path: the part of the configuration; the message goes on from there ("must be ...") or is a sentence itself.
    key: the wrong name inside the part at `path`, to find its line.
    """

    path: Path
    message: str
    key: str | None = None

    def __str__(self) -> str:
        if not self.path:
            return self.message
        return f"{path_text(self.path)}{'' if self.message.startswith('must ') else ':'} {self.message}"


class ConfigurationError(MptServeError, ValueError):
    """A configuration that cannot be used. `problems` holds every mistake found, not only the first."""

    def __init__(self, problems: Iterable[Problem], source: str | None = None) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        if source is not None:
            count = "1 error" if len(lines) == 1 else f"{len(lines)} errors"
            lines.insert(0, f"{source}: {count}")
        super().__init__("\n  ".join(lines))


def path_text(path: Path) -> str:
    """Return the path as users write it: ('applications', 0, 'args') -> `applications[0].args`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def value_text(value: object) -> str:
    """Return a wrong value with its kind, in the terms of YAML: `'4' (a string)`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping | list | tuple):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    kinds = {str: "a string", int: "an integer", float: "a number"}
    return f"{value!r:.100} ({kinds.get(type(value), f'of type {type(value).__name__}')})"


def closest(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest valid one, or all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"valid here: {', '.join(names)}" if names else "nothing is valid here"


def schema_problems(schema: type[BaseModel], data: object) -> list[Problem]:
    """Return every unknown name in `data`, at any depth, and, where all names are known, every wrong value.

    The schema's own `extra` policy does not matter: Serve's models ignore unknown keys, ours refuse them, and both
    get the nearest valid name here.
    """
    unknown = list(_unknown_names(schema, data, ()))
    if unknown:
        return unknown
    try:
        schema.model_validate(copy.deepcopy(data))  # some of Serve's validators write into their input
    except ValidationError as error:
        return [_value_problem(dict(detail), data) for detail in error.errors(include_url=False)]
    return []


def _unknown_names(schema: type[BaseModel], data: object, path: Path) -> Iterator[Problem]:
    if not isinstance(data, Mapping):
        return
    fields = schema.model_fields
    for key, value in data.items():
        if key in fields:
            for inner, inner_value, inner_path in _nested(fields[key].annotation, value, (*path, key)):
                yield from _unknown_names(inner, inner_value, inner_path)
        else:
            yield Problem(path, f"unknown setting '{key}'; {_nearest(str(key), fields)}", str(key))


def _nearest(name: str, fields: Mapping[str, FieldInfo]) -> str:
    for group, field in fields.items():  # the right name one level too high
        if any(name in inner.model_fields for inner in _models(field.annotation)):
            return f"it belongs under '{group}'"
    return closest(name, fields)


def _nested(annotation: Any, value: object, path: Path) -> Iterator[tuple[type[BaseModel], object, Path]]:
    """Yield (model, value, path) for every part of `value` that the annotation gives to a model."""
    for model in _models(annotation):
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield model, item, (*path, index)
        else:
            yield model, value, path


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models in an annotation such as `Optional[Union[dict, Model]]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        return [model for argument in get_args(annotation) for model in _models(argument)]
    return []


# pydantic's types of errors, in the terms of a configuration file; others keep pydantic's own message.
_MESSAGES = {
    "model_type": "must be a mapping of settings",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "byte_size": "must be a size such as 512MiB or 4GiB",
    "byte_size_unit": "must be a size such as 512MiB or 4GiB",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
}


def _value_problem(detail: Mapping[str, Any], data: object) -> Problem:
    if detail["type"] == "missing":
        return Problem(_path_in(data, detail["loc"][:-1]), f"the setting '{detail['loc'][-1]}' is required")
    path = _path_in(data, detail["loc"])
    if detail["type"] == "value_error":
        return Problem(path, detail["msg"].removeprefix("Value error, "))
    message = _MESSAGES.get(detail["type"])
    if message is None:
        message = detail["msg"].replace("Input should", "must").replace("String should", "must")
    else:
        message = message.format(**detail.get("ctx", {}))
    return Problem(path, f"{message}; got {value_text(detail['input'])}")


def _path_in(data: object, location: Path) -> Path:
    """Return pydantic's location without the names of union branches, which are nowhere in the data."""
    path: list[str | int] = []
    for part in location:
        found = part in data if isinstance(data, Mapping) else isinstance(part, int) and isinstance(data, list)
        if found:
            path.append(part)
            data = data[part]  # type: ignore[index]
    return tuple(path)
