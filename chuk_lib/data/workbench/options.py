"""Values of options such as `COLUMN=VALUE`, read and checked."""

from __future__ import annotations

from collections.abc import Iterable

from chuk_lib.errors import ConfigError


def parse_pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """`COLUMN=VALUE` options as a mapping. Raises ConfigError for one without `=`."""
    pairs = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ConfigError(
                f"{option} `{text}` is not COLUMN=VALUE", f"such as {option} text=value"
            )
        pairs[name] = value
    return pairs


def parse_shares(texts: Iterable[str], option: str) -> dict[str, float]:
    """`NAME=SHARE` options, shares between 0 and 1."""
    shares = {}
    for name, value in parse_pairs(texts, option).items():
        try:
            shares[name] = float(value)
        except ValueError:
            shares[name] = -1.0
        if not 0 <= shares[name] <= 1:
            raise ConfigError(
                f"{option} `{name}={value}` is no share", "a share is between 0 and 1"
            )
    return shares
