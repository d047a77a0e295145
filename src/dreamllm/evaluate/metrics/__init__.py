"""Metrics as pure functions of answers and references; `evaluate/tasks` says which benchmark uses which."""
