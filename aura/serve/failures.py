"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aura.errors import AudioError, AuraError, PromptError

INVALID = "invalid_request_error"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large", 503: "unavailable"}
LONGEST = 600  # characters of a message: some quote what they were given


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: HTTP status.
        message: what was given, what was expected, what to do next.
        code: for programs, e.g. `model_not_found`.
        param: field of the request that is meant.
        headers: further headers, e.g. `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= LONGEST else message[: LONGEST - 3] + "..."
        self.code = code or CODES.get(status)
        self.param = param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        return TYPES.get(self.status, "server_error" if self.status >= 500 else INVALID)

    def body(self) -> dict[str, Any]:
        """The `error` object of a response or of a realtime event."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


def of_aura_error(error: AuraError, *, param: str | None = None) -> ApiError:
    """What the client did wrong (400), or what is wrong with us (500)."""
    if isinstance(error, AudioError):
        return ApiError(400, str(error), code="invalid_audio", param=param)
    if isinstance(error, PromptError):
        long = "positions" in str(error) and "the LLM has" in str(error)
        return ApiError(400, str(error), code="context_length_exceeded" if long else "invalid_prompt", param=param)
    return ApiError(500, "the server could not answer; its log says why", code="internal_error")


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first thing that does not fit the schema, without repeating the value: it may be megabytes of audio."""
    first = errors[0] if errors else {"loc": (), "msg": "not understood"}
    place = [str(step) for step in first["loc"] if step not in ("body", "query", "path", "header")]
    param = ".".join(place) or None
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return ApiError(400, f"{param or 'the request'}: {first['msg']}{more}", code="invalid_value", param=param)


def left() -> ApiError:
    """Nobody reads this one: 499 is nginx's number for a client that went away; it stands in the log."""
    return ApiError(499, "the client went away", code="cancelled")


def timed_out(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"no whole answer within {seconds:g} s; ask for fewer tokens, send less audio, or try again when the server is less busy",
        code="timeout",
    )


def model_failed(failure: Exception) -> ApiError:
    """What clients hear when a pass of the model fails; why is in the log, which the caller writes."""
    if "out of memory" in str(failure).lower():
        return ApiError(503, "out of memory; send less audio or try again later", headers={"Retry-After": "5"})
    return ApiError(500, "the model failed on this batch; the server's log says why", code="internal_error")
