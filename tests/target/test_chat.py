"""Chat templates: what ``transformers`` renders, in a sandbox, errors in one line."""

from __future__ import annotations

from typing import Any

import pytest

from dynaspec_cli.errors import DynaSpecError
from dynaspec_cli.target.chat import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "héllo 東京"},
    {"role": "assistant", "content": " hi "},
    {"role": "user", "content": "again"},
]
SOURCES = {
    "plain": (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "blocks": (
        "{%- for m in messages %}\n    {% if m.role == 'user' %}\nU: {{ m.content }}\n"
        "    {% endif %}\n{% endfor %}\nend"
    ),
    "json": "{{ messages[0] | tojson }} {{ messages | tojson(indent=2) }}",
    "loop control": (
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}x{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}{{ dict(a=1) }}{% macro f(x) %}[{{ x }}]{% endmacro %}"
        "{{ f(messages[1].content) }}"
    ),
    "unset": (
        "{% if tools is none %}no tools{% endif %}{{ enable_thinking is defined }}{{ nothing }}"
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_agrees_with_transformers(name: str) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1}, merges=[]))
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    theirs.chat_template = SOURCES[name]
    wanted = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(SOURCES[name], SPECIAL).render(MESSAGES) == wanted


def test_arguments() -> None:
    template = ChatTemplate("{{ enable_thinking }}{{ bos_token }}{{ tools }}", SPECIAL)
    rendered = template.render([], enable_thinking=False, bos_token="B", tools=[1])
    assert rendered == "FalseB[1]"
    with pytest.raises(DynaSpecError, match="--chat-arg messages: set by --chat itself"):
        ChatTemplate("x", {}).render([], messages="y")


def test_the_day() -> None:
    rendered = ChatTemplate("{{ strftime_now('%Y') }}", {}).render([])
    assert rendered.isdigit()
    assert len(rendered) == 4


def test_a_refusal_is_one_line() -> None:
    template = ChatTemplate("{{ raise_exception('roles must\\nalternate') }}", {})
    with pytest.raises(DynaSpecError, match="refused the conversation: roles must") as caught:
        template.render(MESSAGES)
    assert "\n" not in str(caught.value)


def test_a_template_that_is_none() -> None:
    with pytest.raises(DynaSpecError, match=r"cannot be read \(line 2: ") as caught:
        ChatTemplate("a\n{% for %}", {}).render(MESSAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include 'x' %}",
    ],
)
def test_nothing_outside_is_reached(source: str) -> None:
    with pytest.raises(DynaSpecError, match="refused the conversation"):
        ChatTemplate(source, SPECIAL).render(MESSAGES)
    assert len(MESSAGES) == 4
