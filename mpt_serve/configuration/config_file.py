"""A YAML file, read so that mistakes can be reported by line."""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import yaml

from mpt_serve.configuration.problems import ConfigurationError, Path, Problem, value_text

__all__ = ["STARTING_POINT", "ConfigFile"]

# The repository's serve_config.yaml, as the package carries it.
STARTING_POINT = FilePath(__file__).with_name("serve_config.yaml")


class ConfigFile:
    """A YAML file's content, and the line of every part of it.

    data: the top-level mapping.
    Raises ConfigurationError for a file that cannot be read, is not YAML, is not a mapping, or repeats a name.
    """

    def __init__(self, path: str | FilePath) -> None:
        self.path = FilePath(path)
        try:
            text = self.path.read_text(encoding="utf-8")
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data: Any = yaml.safe_load(text)
            repeated = _repeated_keys(self._root, ())
        except FileNotFoundError as error:
            fix = f"`mpt-serve docs configuration > {path}` writes one that serves the embedded model"
            raise ConfigurationError([Problem((), f"there is no such file; {fix}")], str(path)) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError([Problem((), f"cannot be read: {error}")], str(path)) from error
        except yaml.YAMLError as error:
            raise ConfigurationError([Problem((), f"is not YAML: {error}")], str(path)) from error
        except RecursionError as error:
            problem = Problem((), "is nested too deeply, or has an alias that contains itself")
            raise ConfigurationError([problem], str(path)) from error
        if not isinstance(self.data, Mapping):
            raise self.error([Problem((), f"must be a mapping at the top; got {value_text(self.data)}")])
        if repeated:
            raise self.error(repeated)

    def line(self, path: Path) -> int:
        """Return the line (from 1) where the part at `path` begins, or the nearest part around it that exists."""
        node, line = self._root, 1
        for part in path:
            child = _child(node, part)
            if child is None:
                break
            line, node = child
        return line

    def error(self, problems: list[Problem]) -> ConfigurationError:
        """Return the problems as one error that names the file and the lines."""
        placed = sorted((self.line(p.path if p.key is None else (*p.path, p.key)), str(p)) for p in problems)
        return ConfigurationError([Problem((), f"line {line}: {text}") for line, text in placed], str(self.path))


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item.start_mark.line + 1, item
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    return None


def _repeated_keys(node: yaml.Node | None, path: Path) -> list[Problem]:
    """Find names that occur twice in one mapping, of which YAML silently keeps the last."""
    problems: list[Problem] = []
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            problems += _repeated_keys(item, (*path, index))
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                problems.append(Problem(path, f"'{key.value}' occurs twice, in lines {seen[key.value]} and {line}"))
            seen[key.value] = line
            problems += _repeated_keys(value, (*path, key.value))
    return problems
