"""The tokenizer doctor: what is wrong with a tokenizer and its chat template for training, and
mending it."""
