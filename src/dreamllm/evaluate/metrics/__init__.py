"""Metrics as pure functions of answers and references; what each benchmark uses is told in `evaluate/tasks`."""
