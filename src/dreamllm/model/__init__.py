"""The DreamLLM model, its processor, sampling and generation. Only `build` reads files."""
