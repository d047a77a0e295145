"""Masks secrets in text that is shown or written: keys, tokens and passwords in addresses.

    mask("https://user:word@host/?token=abc")      https://***@host/?token=***

Mask first and shorten afterwards: a key that was cut in two is no longer found.
"""

from __future__ import annotations

import json
import os
import re
from urllib.parse import quote

MASK = "***"
VARIABLES = (
    "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN", "GITHUB_TOKEN", "GH_TOKEN",
    "DVC_STUDIO_TOKEN", "WANDB_API_KEY",
)  # fmt: skip
"""Environment variables with secrets of this project and of the tools that it calls."""
SHORTEST = 6  # characters; a shorter value would be found in ordinary words
NAMES = "token|secret|signature|sig|password|passwd|credential|api_?key|key|accesskeyid"
PATTERNS = [
    (re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]{0,20}://)[^/\s@'\"<>]{1,1000}@"), rf"\1{MASK}@"),
    (re.compile(rf"(?i)([?&;](?:[\w-]{{0,40}}[-_])?(?:{NAMES})=)[^&;\s'\"#<>]+"), rf"\1{MASK}"),
    (
        re.compile(r"(?i)\b((?:bearer|authorization['\"]?\s{0,3}[:=]\s{0,3}['\"]?basic)\s{1,3})[\w.~+/=-]{6,}"),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[a-z]_\w{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16})"), MASK),
]
"""User and password of an address, secrets in its query, values of an Authorization header, keys of known forms."""


def mask(text: str, *secrets: str) -> str:
    """The text with `***` for every secret in it: those given, those of VARIABLES, and what PATTERNS find."""
    known = {*secrets, *(os.environ.get(name, "") for name in VARIABLES)}
    for secret in sorted((one for one in known if len(one) >= SHORTEST or one in secrets), key=len, reverse=True):
        for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]} - {""}:
            text = text.replace(form, MASK)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text
