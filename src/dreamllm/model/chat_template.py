"""The chat template of the model in Jinja, for `apply_chat_template`: renders messages as the layout lays them out."""

from __future__ import annotations

import json

from dreamllm.data.layout import TEMPLATES

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
