"""The authors' released checkpoints: reading, writing, and conversion to our model and back."""
