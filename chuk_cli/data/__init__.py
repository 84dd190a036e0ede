"""The commands of `chuk data`."""
