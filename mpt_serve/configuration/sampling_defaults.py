"""What sampling fields mean in requests that leave them out."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from mpt_serve.configuration.setting_types import SettingsGroup, not_boolean

__all__ = ["SamplingDefaults"]

logger = logging.getLogger(__name__)

FILE = "generation_config.json"


class SamplingDefaults(SettingsGroup):
    """What these fields mean in requests that leave them out. Unset: what the checkpoint's file says, if it does."""

    from_checkpoint: bool = Field(
        default=True,
        description=f"Use the values in the checkpoint's `{FILE}`, as its authors meant it to be used. `false`: the"
        " defaults of the API ([api.md](api.md)) for what is not set here.",
    )
    temperature: Annotated[float | None, Field(ge=0, le=2), not_boolean("a number")] = Field(
        default=None, description="Randomness; 0 always takes the most likely token. Without any default: 1."
    )
    top_p: Annotated[float | None, Field(gt=0, le=1), not_boolean("a number")] = Field(
        default=None, description="Keep the most likely tokens that together reach this probability."
    )
    top_k: Annotated[int | None, Field(ge=-1, le=999_999), not_boolean("an integer")] = Field(
        default=None, description="Keep this number of the most likely tokens; 0 and -1 keep all."
    )
    min_p: Annotated[float | None, Field(ge=0, le=1), not_boolean("a number")] = Field(
        default=None, description="Drop tokens less likely than this share of the most likely one's probability."
    )
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10), not_boolean("a number")] = Field(
        default=None, description="Makes tokens of the prompt and the output less likely where it is above 1."
    )

    def of_model(self, folder: Path) -> Mapping[str, float]:
        """Return the fields that have a default, for the model whose small files a folder holds.

        A value in the checkpoint's file that no request could have is left out, with a warning.
        """
        stated = _stated(folder / FILE) if self.from_checkpoint else {}
        return {**stated, **_values(self)}


def _values(defaults: SamplingDefaults) -> dict[str, float]:
    return defaults.model_dump(exclude={"from_checkpoint"}, exclude_none=True)


def _stated(file: Path) -> dict[str, float]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):  # there need be no such file; what reads its ids of ends complains about others
        return {}
    stated: dict[str, float] = {}
    for name in SamplingDefaults.model_fields.keys() - {"from_checkpoint"}:
        value: Any = content.get(name) if isinstance(content, dict) else None
        try:
            stated |= _values(SamplingDefaults.model_validate({name: value}, strict=True))
        except ValidationError:
            logger.warning("%s: %s is no value that a request could have; it is ignored", FILE, name)
    return stated
