"""The model adapter for lmms-eval (EvolvingLMMs-Lab, 0.7): `lmms-eval --model dreamllm --model_args pretrained=FOLDER`.

lmms-eval finds `manifest` by the entry point `lmms_eval.models` of this package. It is not among the dependencies:
`make lmms-eval` installs both in an environment of their own (docs/evaluation.md).
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """lmms-eval's ModelManifest of the adapter: tasks of messages, and with --force_simple tasks of likelihoods."""
    from lmms_eval.models.registry_v2 import ModelManifest

    models = f"{__name__}.models"
    return ModelManifest(
        model_id="dreamllm", simple_class_path=f"{models}.DreamLLM", chat_class_path=f"{models}.DreamLLMChat"
    )
