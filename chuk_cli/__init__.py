"""The `chuk` command line. It knows the library; the library does not know it."""

from __future__ import annotations

from chuk_lib import __version__ as __version__
