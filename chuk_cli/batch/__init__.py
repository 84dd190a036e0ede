"""The commands of `chuk batch`, by what they do; `chuk_cli/commands/batch.py` puts them
together."""
