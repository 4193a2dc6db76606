"""Requests as messages of a link, on their way from an Ingress to a Generator; see `delta_link`."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from mpt_serve.engine.sampling_params import SamplingParams

__all__ = ["LinkRequest", "Message", "decode_request", "encode_request"]

_DEFAULTS = {field.name: field.default for field in fields(SamplingParams)}

# A request's number, its id, the prompt's ids, the parameters that are no defaults, and the ids generated before. Ids
# are int32 in the machine's order.
Message = tuple[int, str, bytes, dict[str, Any], bytes]


@dataclass(frozen=True, slots=True)
class LinkRequest:
    """A request of an Ingress. number: its name on the link. generated: ids that it has already."""

    number: int
    request_id: str
    prompt_ids: Sequence[int]
    params: SamplingParams
    generated: Sequence[int]


def encode_request(request: LinkRequest) -> Message:
    """Return a request as a message."""
    params = {name: value for name, default in _DEFAULTS.items() if (value := getattr(request.params, name)) != default}
    return (request.number, request.request_id, _packed(request.prompt_ids), params, _packed(request.generated))


def decode_request(message: Message) -> LinkRequest:
    """Return the request of a message."""
    number, request_id, prompt_ids, params, generated = message
    return LinkRequest(number, request_id, _unpacked(prompt_ids), SamplingParams(**params), _unpacked(generated))


def _packed(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def _unpacked(data: bytes) -> list[int]:
    return array("i", data).tolist()
