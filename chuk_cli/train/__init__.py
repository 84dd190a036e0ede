"""The commands of `chuk train`, a module each, and what they share."""
