"""Types that fields of several requests have."""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.config import JsonDict

__all__ = ["MAX_INT32", "POSITIVE_ZERO", "ModelId", "TokenId", "shown_default"]

MAX_INT32 = 2**31 - 1

POSITIVE_ZERO = AfterValidator(lambda number: number + 0.0)  # -0.0 becomes 0.0


def shown_default(words: str) -> JsonDict:
    """Return the extra of a field's schema that says in words what the omitted field means."""
    return {"x-default": words}


TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]

ModelId = Annotated[
    str | None,
    Field(
        max_length=256,
        description="The model's id, as `/v1/models` lists it.",
        json_schema_extra=shown_default("the served model"),
    ),
]
