"""The decoder: a batch of rows that write together, one token a row and step.

decoder      rows wait, join, step, leave and go on: continuous batching; rows and queue: what it
             keeps of them
engine       a batch in arithmetic: on a CPU in NumPy, else over the model's own forward; engines:
             which of them
lookahead    tokens that are guessed from the text; draft: by a smaller model
prefixes     keys and values of earlier prompts, for those that begin alike
draws        what each row's token is drawn with; sampling: what filters leave of a distribution
stores       keys and values of the rows; plain_store: buffers written in place
prefill      prompts through the model, once each; budget: how many rows at once
forwards     the model's step, whole or with fused weights; products; llama: the parts of a model
             of that kind
numpy_llama  a step without MLX, on a CPU
cuda         a step in kernels of our own, on an NVIDIA GPU
"""
