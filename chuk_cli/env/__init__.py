"""The commands of `chuk env`."""
