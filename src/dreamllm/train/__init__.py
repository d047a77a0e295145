"""Training of a stage: the loop, learning-rate schedule, several processes, checkpoints and resuming."""
