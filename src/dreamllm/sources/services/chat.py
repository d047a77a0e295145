"""A client of OpenAI's chat completions API that caches every answer, so that no request is paid for twice.

Services differ in the options that they take: OpenAI's newer models refuse `max_tokens` and a temperature other than 1.
A refused request is sent again without or with other options (`CONCESSIONS`). What the service then accepts is kept for
all later requests of this client, and every answer is cached with the options that were sent for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import requests

from dreamllm.atomic import new_file
from dreamllm.config.sources import Service
from dreamllm.data.damage import parse_json
from dreamllm.masking import MASK, mask
from dreamllm.sources.services.http import TIMEOUT, FetchProblem, body_of, session

CONCESSIONS = {  # option that a service may refuse: its newer name, or None to leave it out
    "max_tokens": "max_completion_tokens",
    "temperature": None,
    "seed": None,
    "max_completion_tokens": None,
}
REFUSED = (400, 422)  # status codes of a request with an option that the service does not take


@dataclass
class Chat:
    """Client of the service in `settings`. Answers are cached in the folder `cache`; the key is never written
    anywhere."""

    settings: Service
    cache: Path
    key: str
    tokens: dict[str, int] = field(default_factory=lambda: {"in": 0, "out": 0, "requests": 0, "from cache": 0})
    models: set[str] = field(default_factory=set)
    """Names of the models that answered, as the service reports them."""
    refused: list[str] = field(default_factory=list)
    """Options that the service turned out to refuse, in the order in which they were given up."""
    sent: set[str] = field(default_factory=set)
    """The options that the answers were asked with, each set of them as JSON."""
    web: requests.Session = field(default_factory=session)
    lock: Any = field(default_factory=Lock)

    def ask(self, messages: list[dict[str, str]], *, temperature: float = 0, repeat: int = 0, **options: Any) -> str:
        """The answer to a conversation, from the cache if it is there.

        repeat: index of a repetition of the same request; each is answered and cached separately.
        options: further fields of the request. Raises FetchProblem when the service refuses or cannot be reached.
        """
        body = {"model": self.settings.model, "messages": messages, "temperature": temperature, **options}
        cache_key = body | ({"repeat": repeat} if repeat else {})
        digest = hashlib.sha256(json.dumps(cache_key, sort_keys=True).encode()).hexdigest()
        path = self.cache / digest[:2] / f"{digest}.json"
        if cached := path.exists():
            answer = _cached(path)
        else:
            answer = self._post(body)
            with new_file(path) as temporary:
                temporary.write_text(json.dumps(answer), encoding="utf-8")
        with self.lock:
            self.tokens["from cache" if cached else "requests"] += 1
            self.tokens["in"] += answer["in"]
            self.tokens["out"] += answer["out"]
            self.models.add(answer.get("model") or self.settings.model)
            wanted = {key: value for key, value in body.items() if key not in ("model", "messages")}
            self.sent.add(json.dumps(answer.get("sent", wanted), sort_keys=True))
        return answer["text"]

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask as wanted, and where the service refuses an option, with the next concession, until it answers."""
        with self.lock:
            refused = list(self.refused)
        first_refusal: FetchProblem | None = None
        while True:
            asked = with_concessions(body, refused)
            try:
                answer = self._post_once(asked)
            except _Refusal as problem:
                first_refusal, said = first_refusal or problem, str(problem)
            else:
                # a model that reasons first may spend all of the tokens on it, and answers nothing then
                if answer["text"] or answer["finish"] != "length" or "max_completion_tokens" not in asked:
                    break
                refused.append("max_completion_tokens")
                continue
            left = [option for option in CONCESSIONS if option in asked]
            named = [option for option in left if option in said]
            if not left:
                raise first_refusal
            refused.append((named or left)[0])
        with self.lock:
            self.refused += [option for option in refused if option not in self.refused]
        sent = {key: value for key, value in asked.items() if key not in ("model", "messages")}
        return answer | {"sent": sent}

    def _post_once(self, body: dict[str, Any]) -> dict[str, Any]:
        url = f"{(self.settings.endpoint or '').rstrip('/')}/chat/completions"
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            with self.web.post(url, json=body, headers=headers, timeout=TIMEOUT, stream=True) as answer:
                told = body_of(answer)
        except requests.exceptions.RequestException as error:
            raise FetchProblem(f"{url}: {self._without_key(str(error))}") from None
        if answer.status_code != 200:
            said = self._without_key(told)[:300]
            hint = "; is OPENAI_API_KEY set and valid?" if answer.status_code in (401, 403) else ""
            problem = _Refusal if answer.status_code in REFUSED else FetchProblem
            raise problem(f"{url}: the service answers {answer.status_code}: {said}{hint}")
        try:
            content = parse_json(told)
            text, usage = content["choices"][0]["message"]["content"], content.get("usage") or {}
            counts = {"in": int(usage.get("prompt_tokens", 0)), "out": int(usage.get("completion_tokens", 0))}
            finish = str(content["choices"][0].get("finish_reason") or "")
            text, model = (text or "") + "", (content.get("model") or "") + ""  # TypeError for anything but text
            if self.key:  # what is kept of an answer has no key, should a service repeat it
                text, model = text.replace(self.key, MASK), model.replace(self.key, MASK)
            return {"text": text, "model": model, "finish": finish, **counts}
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            said = self._without_key(told)[:300]
            raise FetchProblem(f"{url}: the answer is not a chat completion: {said}") from None

    def _without_key(self, text: str) -> str:
        return mask(text, self.key)

    def cost(self) -> dict[str, float]:
        """Tokens of all answers used, including cached ones, and their price in dollars."""
        price_in, price_out = self.settings.dollars_per_million
        dollars = (self.tokens["in"] * price_in + self.tokens["out"] * price_out) / 1e6
        return {**self.tokens, "dollars": round(dollars, 4)}


def _cached(path: Path) -> dict[str, Any]:
    """An answer of the cache. Raises FetchProblem for a file that is none."""
    try:
        answer = parse_json(path.read_text(encoding="utf-8"))
        sound = isinstance(answer["text"], str) and type(answer["in"]) is type(answer["out"]) is int
    except (ValueError, LookupError, TypeError):
        sound = False
    if not sound:
        raise FetchProblem(f"{path}: is no answer that was kept; delete the file, and it is asked for again")
    return answer


class _Refusal(FetchProblem):
    """The service does not take a request as it is."""


def with_concessions(body: dict[str, Any], refused: Sequence[str]) -> dict[str, Any]:
    """The request without the refused options, those with a newer name under it."""
    asked = dict(body)
    for option in refused:
        if option in asked:
            value = asked.pop(option)
            if newer := CONCESSIONS[option]:
                asked[newer] = value
    return asked
