"""The commands of `chuk model` that have a module of their own."""
