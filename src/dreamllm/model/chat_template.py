"""Chat templates in Jinja: those of the layout for `apply_chat_template`, and a tokenizer's own for the layout.

A tokenizer's template is rendered by transformers, in its sandbox, with marks in place of the contents of messages.
What it writes around them is then tokenized together with the contents, as the tokenizer would do with the whole
string, except that contents that spell a special token stay text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache, partial

from jinja2 import TemplateError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from dreamllm.data.document import Role
from dreamllm.data.layout import TEMPLATES, ChatTemplate, Words

TOKENIZER = "tokenizer"
"""Name, among those of `layout.TEMPLATES`, of the template that is the tokenizer's own."""

# Parts are joined by one space each. The processor splits the string at the same places (`_conversation`), so that the
# tokens are those of training.
_TEMPLATE = """
{{- bos_token or eos_token }}
{%- macro parts(content) %}
    {%- if content is string %}{{ ' ' + content if content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'image' %}{{ ' <image>' }}
            {%- elif part.type == 'text' %}{{ ' ' + part.text if part.text }}
            {%- else %}{{ raise_exception('a message holds text and images, no ' + part.type) }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set system = SYSTEM %}
{%- if messages[0].role == 'system' %}
    {%- set system = parts(messages[0].content)[1:] %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if not messages or messages[0].role != 'user' %}{{ raise_exception('a conversation starts with the user') }}
{%- endif %}
{{- system + ' ' if system }}
{%- for message in messages %}
    {%- set follows = not loop.first and loop.previtem.role == message.role %}
    {%- if message.role == 'user' %}{{ '' if follows else USER }}{{ parts(message.content) }}
    {%- elif message.role == 'assistant' %}
        {{- '' if follows else ' ' + ASSISTANT }}{{ parts(message.content) }}
        {{- eos_token if loop.last or loop.nextitem.role != 'assistant' }}
    {%- else %}{{ raise_exception('a role is user, assistant or, of the first message, system; not ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role == 'user' %}{{ ' ' + ASSISTANT }}{%- endif %}
"""


def chat_template_of(template: str) -> str:
    """The Jinja template of one of `layout.TEMPLATES`."""
    words = vars(TEMPLATES[template])
    lines = [line.strip() for line in _TEMPLATE.strip().splitlines()]
    text = "\n".join(lines)
    for name in ("system", "user", "assistant"):
        text = text.replace(name.upper(), json.dumps(words[name]))
    return text


# Contents of messages as one string each, in which <image> stands for a picture, and <dream> for its dream queries.
# Without thinking, and at the date of Llama 3's own default, so that a prompt is what was trained on.
_WITH_PICTURES = """
{%- set all = namespace(messages=[]) %}
{%- for message in messages %}
    {%- set content %}
        {%- if message.content is string %}{{ message.content }}
        {%- else %}
            {%- for part in message.content %}
                {%- if part.type == 'image' %}{{ '<dream><image>' if message.role == 'assistant' else '<image>' }}
                {%- elif part.type == 'text' %}
                    {{- ' ' if not loop.first and loop.previtem.type == 'text' }}{{ part.text }}
                {%- else %}{{ raise_exception('a message holds text and images, no ' + part.type) }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
    {%- endset %}
    {%- set all.messages = all.messages + [dict(message, content=content | trim)] %}
{%- endfor %}
{%- set messages = all.messages %}
{%- if enable_thinking is not defined %}{% set enable_thinking = false %}{% endif %}
{%- if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
"""


def with_pictures(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, for messages with images. Raises ValueError where it has none that can be used."""
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.chat_template:
        raise ValueError(f"{name}: the tokenizer has no chat template; choose another model.template")
    own = tokenizer.get_chat_template()
    if "strftime_now" in own and "date_string" not in own:
        raise ValueError(f"{name}: the chat template writes today's date, so that prompts would change from day to day")
    return _WITH_PICTURES.strip().replace("    ", "").replace("\n", "") + own


@lru_cache(maxsize=16)
def layout_template(tokenizer: PreTrainedTokenizerBase, template: str) -> ChatTemplate:
    """What the layout needs to know of a tokenizer and its template, the result of `with_pictures`.

    Raises ValueError for a tokenizer without offsets, and for a template that cannot be used: it fails, it does not
    write each message once and in order, it begins answers with other words than stand before those that are there
    (some models that always think), or no special token ends an answer.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no offsets of tokens; convert it to a tokenizer.json")
    begun = _frame(tokenizer, template, ("user",))
    frames = [_frame(tokenizer, template, roles) for roles in (("user", "assistant"), ("user", "assistant", "user"))]
    if begun[1].rstrip() != frames[0][1].rstrip():
        raise ValueError(
            f"the chat template begins an answer with {begun[1]!r}, but an answer follows {frames[0][1]!r}"
        )
    last, between = (_special(tokenizer).search(frame[2]) for frame in frames)
    if last is None or between is None or last[0] != between[0]:
        raise ValueError("no special token of the chat template ends each answer; choose another model.template")
    return ChatTemplate(partial(render, tokenizer, template), tokenizer.convert_tokens_to_ids(last[0]))


def user_marker(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """What the template writes immediately before the user's words, from its last special token on."""
    before = _frame(tokenizer, template, ("user",))[0]
    specials = list(_special(tokenizer).finditer(before))
    return before[specials[-1].start() :] if specials else before


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    turns: Sequence[tuple[Role, Sequence[str | None]]],
    closed: bool,
) -> list[Words | None]:
    """See `layout.ChatTemplate`. Spaces at both ends of a turn are removed, as most templates do."""
    frame = _frame(tokenizer, template, tuple(role for role, _ in turns))
    special = _special(tokenizer)
    rendered: list[Words | None] = []
    run: list[tuple[str, bool]] = []  # (text, whether it is a target) since the last special token or picture
    before = ""  # that token

    def append(literal: str, *, is_target: bool) -> None:
        """Append what the template writes between two contents; `is_target`: up to its first special token."""
        nonlocal before
        for number, text in enumerate(re.split(f"({special.pattern})", literal)):
            if number % 2:
                flush()
                before = text
                rendered.append(Words((tokenizer.convert_tokens_to_ids(text),), (is_target,)))
                is_target = False
            else:
                run.append((text, is_target))

    def flush() -> None:
        if any(text for text, _ in run):
            rendered.append(_tokenized(tokenizer, before, run))
        run.clear()

    roles: list[Role | None] = [None, *(role for role, _ in turns)]
    for literal, (previous, (role, contents)) in zip(frame, zip(roles, turns, strict=False), strict=False):
        append(literal, is_target=previous == "assistant")
        for number, text in enumerate(contents):
            if text is None:
                flush()
                before = "<image>"
                rendered.append(None)
                continue
            text = text.lstrip() if number == 0 else text
            run.append((text.rstrip() if number + 1 == len(contents) else text, role == "assistant"))
    if roles[-1] == "user":
        append(frame[-1], is_target=False)
    elif closed:
        append(frame[-1][: special.search(frame[-1]).end()], is_target=True)  # type: ignore[union-attr]
    flush()
    return rendered


def _tokenized(tokenizer: PreTrainedTokenizerBase, before: str, run: Sequence[tuple[str, bool]]) -> Words:
    """Tokens of a text after the special token `before`, on which its first token may depend.

    A token is a target if any of its characters is. Text that spells a special token is tokenized on its own.
    """
    text = "".join(part for part, _ in run)
    flags = [is_target for part, is_target in run for _ in part]
    before = "" if _special(tokenizer).search(text) else before
    encoded = tokenizer(
        before + text, add_special_tokens=False, split_special_tokens=not before, return_offsets_mapping=True
    )
    skipped = 1 if before else 0
    spans = [(start - len(before), end - len(before)) for start, end in encoded.offset_mapping[skipped:]]
    is_target = tuple(any(flags[start : max(end, start + 1)]) for start, end in spans)
    return Words(tuple(encoded.input_ids[skipped:]), is_target)


@lru_cache(maxsize=256)
def _frame(tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[Role, ...]) -> tuple[str, ...]:
    """What the template writes before, between and after the contents of messages with these roles.

    After the user's last message it is the beginning of an answer. Raises ValueError as `layout_template` does.
    """
    messages = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
    options = {"tokenize": False, "add_generation_prompt": roles[-1] == "user"}
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, **options)
    except TemplateError as error:
        raise ValueError(f"the chat template of the tokenizer fails: {error}") from None
    literals = re.split("\ue000(\\d+)\ue001", text)
    if literals[1::2] != [str(number) for number in range(len(roles))]:
        raise ValueError("the chat template of the tokenizer does not write each message once and in order")
    return tuple(literals[::2])


@lru_cache(maxsize=16)
def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the special tokens of a tokenizer, the longest first."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
