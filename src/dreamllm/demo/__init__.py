"""A page in the browser on which people use a model: `dreamllm demo`."""
