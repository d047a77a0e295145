"""Miniature foundation models for the emoji world, in the folder layouts of the real ones; and a judge."""
