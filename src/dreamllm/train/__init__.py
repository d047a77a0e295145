"""Training of a stage: the loop, optimisation, several processes, checkpoints and resuming."""
