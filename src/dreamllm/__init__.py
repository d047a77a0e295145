"""DreamLLM (arXiv 2309.11499), a language model that reads and generates images, as a reproducible experiment.

Importing the package loads neither torch nor transformers, and registers the model with the Auto classes of the latter.
"""

from dreamllm import _auto_classes, _torchvision

__version__ = "0.1.0"

_torchvision.install()
_auto_classes.install()
