"""The requests of POST /v1/score and /v1/rerank."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, PlainValidator, model_validator

from mpt_serve.openai.protocol.field_types import Text, encodable, shown_default
from mpt_serve.openai.protocol.reading import ReadingRequest
from mpt_serve.openai.protocol.schema_words import Accepts, json_type
from mpt_serve.openai.protocol.validation_errors import invalid

__all__ = ["RerankRequest", "ScoreRequest"]

MAX_PAIRS = 1024

_TEXTS_WORDS = f"a string, or an array of 1 to {MAX_PAIRS} strings"
_DOCUMENTS_WORDS = f'an array of 1 to {MAX_PAIRS} non-empty strings or objects {{"text": "..."}}'


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (encodable(value),)
    if not isinstance(value, list) or not 0 < len(value) <= MAX_PAIRS or set(map(type, value)) != {str}:
        raise invalid(f"must be {_TEXTS_WORDS}; got {_came(value)}")
    return tuple(encodable(text, f"[{place}]") for place, text in enumerate(value))


def _documents(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_PAIRS:
        raise invalid(f"must be {_DOCUMENTS_WORDS}; got {_came(value)}")
    return tuple(_document(document, f"[{place}]") for place, document in enumerate(value))


def _document(document: Any, place: str) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str) or not text:
        raise invalid('must be a non-empty string or an object {"text": "..."} with one', place)
    return encodable(text, place)


def _came(value: Any) -> str:
    return f"{len(value)} items" if isinstance(value, list) else json_type(value)


class DocumentObject(BaseModel):
    """A document as an object."""

    text: Annotated[str, Field(min_length=1)]


_Some = Field(min_length=1, max_length=MAX_PAIRS)
Texts = Annotated[
    tuple[str, ...],
    PlainValidator(_texts, json_schema_input_type=str | Annotated[list[str], _Some]),
    Accepts(_TEXTS_WORDS),
]
Documents = Annotated[
    tuple[str, ...],
    PlainValidator(
        _documents,
        json_schema_input_type=Annotated[list[Annotated[str, Field(min_length=1)] | DocumentObject], _Some],
    ),
    Accepts(_DOCUMENTS_WORDS),
]


class ScoreRequest(ReadingRequest):
    """The body of POST /v1/score."""

    text_1: Texts = Field(description="What comes before. One text is taken for each of `text_2`.")
    text_2: Texts = Field(description="What is scored: each text after its `text_1`, or all after the only one.")
    normalize: bool = Field(
        False,
        description="The score is the mean log probability of a token, not the sum: long and short texts compare.",
    )

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """What comes before, and what is scored."""
        before = self.text_1 * len(self.text_2) if len(self.text_1) == 1 else self.text_1
        return tuple(zip(before, self.text_2, strict=True))

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        if len(self.text_1) not in (1, len(self.text_2)):
            counts = f"got {len(self.text_1)} and {len(self.text_2)}"
            raise invalid(f"must hold one text, or as many as 'text_2'; {counts}", "text_1")
        if not all(self.text_2):
            raise invalid("must not hold an empty text: there is nothing to score", "text_2")
        return self


class RerankRequest(ReadingRequest):
    """The body of POST /v1/rerank."""

    query: Annotated[Text, Field(min_length=1)] = Field(description="What the documents are ranked for.")
    documents: Documents = Field(description="What is ranked.")
    top_n: int | None = Field(
        None,
        ge=1,
        le=MAX_PAIRS,
        description="Return this number of the best documents.",
        json_schema_extra=shown_default("all"),
    )
    return_documents: bool = Field(True, description="Return the documents' texts with their places.")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each document with a line end, and the query."""
        return tuple((f"{document}\n", self.query) for document in self.documents)
