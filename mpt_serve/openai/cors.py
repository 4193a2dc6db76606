"""Which pages of other origins may send requests from browsers."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from mpt_serve.openai.errors import InvalidValueError, error_body

__all__ = ["Cors"]

_OF_ITS_BODY = ("content-length", "content-type")


class Cors(CORSMiddleware):
    """Starlette's middleware, with refusals as errors of this API: in plain text they would be taken for Serve's."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a browser that asks whether a page may send a request."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        refused = bytes(response.body).decode().rpartition("Disallowed CORS ")[2]
        error = InvalidValueError(
            f"A page of another origin may not send this request ({refused}): the setting 'access.cors_origins' lists"
            " the origins whose pages may."
        )
        headers = {name: value for name, value in response.headers.items() if name not in _OF_ITS_BODY}
        return JSONResponse(error_body(error), status_code=error.status, headers=headers)
