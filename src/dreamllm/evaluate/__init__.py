"""Benchmarks: reading them, a model's predictions, and their scores."""
