"""What `chuk serve` is told. Light: the command line reads the defaults for its help."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from chuk_lib.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


@dataclass(frozen=True)
class ServeSettings:
    """`token`: what clients must show; without one the host must be a loopback address. `max_body`:
    bytes of a request. `max_waiting`: rows that wait for a place in the batch, beyond which
    requests are refused. `timeout`: seconds that a request may take. `max_tokens`: tokens of an
    answer whose request names no limit. `prefix_cache`: bytes of what is remembered of earlier
    prompts and answers, 0 for nothing. `cors`: origins whose pages may ask."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    max_body: int = 4 << 20
    max_waiting: int = 256
    timeout: float = 300.0
    max_tokens: int = 2048
    cors: tuple[str, ...] = ()
    prefix_cache: int = 512 << 20

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token and self.token.isascii()):
            raise ConfigError("the token must be ASCII text that is not empty", "give another one")
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"`{self.host}` is no loopback address: whoever reaches this machine could ask",
                "give a `--token`, or serve on 127.0.0.1",
            )
        wrong = [one for one in self.cors if not re.fullmatch(r"https?://[^/\s*?#]+", one)]
        if wrong:
            raise ConfigError(
                f"`{wrong[0]}` is no origin", "an origin is like https://example.org: no path, no *"
            )

    @property
    def address(self) -> str:
        """The URL of the server, once its port is known."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def size_of(text: str) -> int:
    """Bytes of a size such as `4MB`, `512KB` or `1000000`. Raises ConfigError for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B?)", text.strip().upper())
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"`{text}` is no size", "write it as 4MB, 512KB or 1000000")
    unit = found[2] if found[2] in _UNITS else f"{found[2]}B"
    return int(float(found[1]) * _UNITS[unit])
