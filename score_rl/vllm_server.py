"""A `vllm serve` somewhere."""
