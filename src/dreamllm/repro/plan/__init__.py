"""What an experiment costs before anything is spent: `dreamllm plan`. See `report.py`."""
