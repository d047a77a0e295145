"""DreamLLM: a language model that reads and draws pictures (arXiv 2309.11499), as a runnable experiment.

Importing the package loads neither torch nor transformers.
"""

from dreamllm import _torchvision

__version__ = "0.1.0"

_torchvision.install()
