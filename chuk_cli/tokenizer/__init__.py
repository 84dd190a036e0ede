"""The commands of `chuk tokenizer`."""
