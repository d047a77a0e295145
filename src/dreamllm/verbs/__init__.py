"""Flags of the verbs whose own modules load torch, Matplotlib or the like, so that `dreamllm VERB --help` is quick."""
