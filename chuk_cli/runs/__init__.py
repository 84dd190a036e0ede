"""How runs on disk are shown in a terminal: the parts of `chuk runs`."""
