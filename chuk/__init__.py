"""The names of chuk's predecessor, for code that still uses them. New code imports `chuk_lib`.

Importing this package makes the old modules importable: `core.*`, `rl.*`, `training.*`, `sft.*`,
`tools.*`, `parameter_server.*`, and `chuk.*` as it was planned. Each name tells, with one
DeprecationWarning, where it is now. A script needs one line, `import chuk`, before its old imports,
or none when it is run as `python -m chuk SCRIPT.py`.

Only this package is installed, and its finder is asked last: a `core` or `training` of your own is
never hidden.
"""

from __future__ import annotations

from chuk.finder import install

install()


def __getattr__(name: str) -> object:
    import chuk_lib

    return getattr(chuk_lib, name)
