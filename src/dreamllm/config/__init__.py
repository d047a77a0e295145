"""Experiment files: reading and checking (`reading`), the whole experiment (`experiment`), its sections."""
