"""DreamLLM (arXiv 2309.11499), a language model that reads and generates images, as a reproducible experiment.

Importing the package loads neither torch nor transformers.
"""

from dreamllm import _torchvision

__version__ = "0.1.0"

_torchvision.install()
