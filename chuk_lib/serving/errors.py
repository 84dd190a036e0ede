"""What a client is refused with: a status and an error object, of OpenAI's or Anthropic's form."""

from __future__ import annotations

from typing import Any

_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
}


class Refused(Exception):
    """A request that is not answered: why, which field (`param`), and with which status."""

    def __init__(
        self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    @property
    def kind(self) -> str:
        """OpenAI's type of error."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def openai(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        inner = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": inner}

    @property
    def anthropic(self) -> dict[str, Any]:
        """The error as Anthropic writes it."""
        kind = _ANTHROPIC.get(self.status, "invalid_request_error")
        where = f"{self.param}: " if self.param else ""
        return {"type": "error", "error": {"type": kind, "message": f"{where}{self.message}"}}

    @property
    def headers(self) -> dict[str, str]:
        """Clients try again by themselves where it may help, and only there."""
        again = {"retry-after": "1"} if self.status == 429 else {"x-should-retry": "false"}
        return {**again, **({"www-authenticate": "Bearer"} if self.status == 401 else {})}


NOT_A_NUMBER = "the model's output is not a number: its weights may be damaged"
