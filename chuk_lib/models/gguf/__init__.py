"""GGUF files, which llama.cpp runs: read, written, made from model folders and made into them."""
