"""Run lmms-eval: `.lmms-eval/bin/python -m dreamllm.lmms_eval --model dreamllm ...`, with the flags of `lmms-eval`.

Importing this package first mends torchvision beside a torch build for CPUs, which lmms-eval imports by itself.
"""

from lmms_eval.cli.dispatch import main

main()
