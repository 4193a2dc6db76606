"""The configuration of a PEFT adapter folder: what it changes of a model, and where that model is."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config.lfs_pointer import lfs_pointer_problem
from model.config.strict_reader import ConfigError

FILE = "adapter_config.json"
_NOT_MERGED = {  # each would change the numbers in a way that is not built
    "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "layer_replication", "alora_invocation_tokens",
    "trainable_token_indices", "target_parameters", "arrow_config",
}  # fmt: skip
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that change the base's weights as well


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA adapter: rank and scale of each module, and the folder of its base model."""

    base: Path
    _data: Mapping[str, Any]

    def scale(self, module: str) -> float:
        """Return what the product of a module's two matrices is multiplied with, as PEFT computes it."""
        rank = self._pattern("rank_pattern", module, self._data["r"])
        alpha = self._pattern("alpha_pattern", module, self._data["lora_alpha"])
        return float(alpha / math.sqrt(rank) if self._data.get("use_rslora") else alpha / rank)

    def _pattern(self, key: str, module: str, default: float) -> float:
        for pattern, value in (self._data.get(key) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return float(value)
        return float(default)


def read_adapter_config(folder: Path) -> AdapterConfig | None:
    """Return the configuration of an adapter folder; None for other folders. Raises ConfigError."""
    file = folder / FILE
    if (folder / "config.json").is_file() or not file.is_file():
        return None
    pointer = lfs_pointer_problem(file)
    if pointer is not None:
        raise ConfigError(pointer)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("peft_type") != "LORA":
        kind = data.get("peft_type") if isinstance(data, dict) else type(data).__name__
        raise ConfigError(f"{file}: peft_type is {str(kind)[:60]!r}; LORA adapters are merged, others not")
    _check(file, data)
    return AdapterConfig(_base(folder, data.get("base_model_name_or_path")), data)


def _check(file: Path, data: Mapping[str, Any]) -> None:
    refused = sorted(key for key in _NOT_MERGED if data.get(key))
    start = str(data.get("init_lora_weights")).lower()
    refused += ["init_lora_weights"] if start.startswith(_CHANGE_THE_BASE) else []
    if refused:
        raise ConfigError(
            f"{file}: {refused[0]} is {str(data[refused[0]])[:60]}, which is not merged; merge the adapter with PEFT"
            " (merge_and_unload) and serve the result"
        )
    for key in ("r", "lora_alpha"):
        value = data.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ConfigError(f"{file}: {key} is {str(value)[:60]}; it must be a number above 0")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = data.get(key) or {}
        try:
            valid = all(isinstance(value, (int, float)) and value > 0 for value in patterns.values())
            list(map(re.compile, patterns))
        except (AttributeError, TypeError, re.error):
            valid = False
        if not valid:
            raise ConfigError(f"{file}: {key} must be an object of numbers above 0 by patterns of module names")


def _base(folder: Path, name: Any) -> Path:
    """Return the folder of the base model, which the file names by a path or a hub id."""
    if isinstance(name, str) and name:
        given = Path(name).expanduser()
        candidates = [given if given.is_absolute() else folder / given, given, folder.parent / given.name]
        found = next((path for path in candidates if path.is_dir() and (path / "config.json").is_file()), None)
        if found is not None:
            return found
    raise ConfigError(
        f"{folder / FILE}: base_model_name_or_path is {str(name)[:200]!r}, and no such folder is here. Set it to the"
        " folder of the model that the adapter was trained on, or put that folder beside the adapter's"
    )
