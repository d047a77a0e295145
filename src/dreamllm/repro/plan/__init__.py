"""Estimate what an experiment costs before it runs: `dreamllm plan`; see `report.py`."""
