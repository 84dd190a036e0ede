"""A step of a Llama-like model in CUDA kernels: `forward` calls `kernels`, whose code is in
`source` and `product_source`."""
