"""The commands of `chuk train`, and what they share."""
