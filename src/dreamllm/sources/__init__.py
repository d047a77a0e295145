"""Public data sets: where they come from (`manifest`), how they are fetched, and how they become Documents."""
