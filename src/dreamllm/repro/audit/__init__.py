"""Reproducibility checks: trace every number to its files, check these, and compare two result folders."""
