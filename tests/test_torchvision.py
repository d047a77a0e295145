"""After `import dreamllm`, torchvision and libraries that use it can be imported beside CPU torch."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import dreamllm, sys
assert "torch" not in sys.modules and "torchvision" not in sys.modules
from cleanfid import fid
from torchvision import transforms
from transformers import CLIPModel, LlamaForCausalLM
from diffusers import StableDiffusionPipeline
"""


def test_in_a_fresh_process_the_package_comes_first_and_everything_else_imports():
    finished = subprocess.run([sys.executable, "-c", CODE], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
