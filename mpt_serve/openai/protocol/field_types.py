"""Types that fields of several requests have."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic.config import JsonDict

from mpt_serve.engine.sampling_params import MAX_INT32, MAX_LOGPROBS
from mpt_serve.openai.protocol.validation_errors import invalid

__all__ = [
    "ALL_LOGPROBS",
    "MAX_INT32",
    "POSITIVE_ZERO",
    "LogprobsCount",
    "ModelId",
    "Text",
    "TokenId",
    "TokensKept",
    "as_list",
    "encodable",
    "shown_default",
]


POSITIVE_ZERO = AfterValidator(lambda number: number + 0.0)  # -0.0 becomes 0.0


def encodable(text: str, place: str = "") -> str:
    """Return the text. Raises an error of the value, or of its part at `place`, if UTF-8 cannot encode it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid("contains half of a surrogate pair, which is not text", place) from None
    return text


def as_list(value: Any) -> Any:
    """Return a list as it is, and anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def shown_default(words: str) -> JsonDict:
    """Return the extra of a field's schema that says in words what the omitted field means."""
    return {"x-default": words}


Text = Annotated[str, AfterValidator(encodable)]  # for strings without a bound: those that have one are checked anyway

ALL_LOGPROBS = f"-1 stands for the most that there are, {MAX_LOGPROBS}"  # a response lists no whole vocabularies
LogprobsCount = Annotated[
    int, Field(ge=-1, le=MAX_LOGPROBS), AfterValidator(lambda count: MAX_LOGPROBS if count == -1 else count)
]


def _not_zero(count: int) -> int:
    if count == 0:
        raise invalid("must be at least 1, or -1 for the number that fits")
    return count


TokensKept = Annotated[int, Field(ge=-1, le=MAX_INT32), AfterValidator(_not_zero)]

TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]

ModelId = Annotated[
    str | None,
    Field(
        max_length=256,
        description="The model's id, as `/v1/models` lists it.",
        json_schema_extra=shown_default("the served model"),
    ),
]
