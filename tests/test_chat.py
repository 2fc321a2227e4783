"""Chat templates: rendered as transformers does, and harmless whatever they hold."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

import jinja2.ext
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quickllama.chat import ChatTemplate
from quickllama.errors import InvalidType, InvalidValue

MESSAGES = [
    {"role": "system", "content": 'Be <brief> & "kind".'},
    {"role": "user", "content": " Hi  "},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "日本?"},
]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nDefault<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = none %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {%- if loop.index0 == 0 and system is not none %}
        {%- set content = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ message['content'] %}
    {%- else %}
        {%- set content = message['content'] | trim %}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content + ' [/INST]' }}
    {%- else %}
        {{- ' ' ~ content ~ ' ' ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""
BLOCKS = """
  {% for message in messages %}
    {% if loop.last %}
last of {{ loop.length }} after {{ loop.previtem.role if not loop.first }}
    {% elif message.role == 'assistant' %}
      {% continue %}
    {% endif %}
{{ loop.index }}/{{ loop.revindex }} {{ message.content | upper }}
    {% if loop.index > 3 %}{% break %}{% endif %}
  {% endfor %}
"""
MACROS = """\
{%- macro turn(role, text='none') -%}
<{{ role }}>{{ text | replace('H', 'J') }}</{{ role }}>
{%- endmacro -%}
{%- set ns = namespace(count=0, names=[]) -%}
{%- for m in messages | selectattr('role', 'equalto', 'user') -%}
{%- set ns.count = ns.count + 1 -%}
{%- set ns.names = ns.names + [m.role] -%}
{{ turn(m.role, m.content.strip()) }}
{%- endfor -%}
{{ ns.count * 2 }} {{ ns.names | join(', ') }} {{ '%s=%03d' % ('n', 7) }} {{ '{}!'.format('x') }}
{%- for key, value in {'a': 1, 'b': [1, 2]}.items() %} {{ key }}:{{ value }}{% endfor %}
{%- filter upper %} shouted {% endfilter %}{{ none }}{{ missing }}{{ 2 ** 10 }}
{%- set kept %}kept {{ bos_token }}{% endset %}{{ kept }}{% for c in 'ab' %}{{ c }}-{% endfor %}
{%- for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{% else %}none{% endfor %}
{%- for x in [] %}{% else %} empty{% endfor %}{{ messages | length }}{{ '**%s**' % 'bold' }}
"""
TEMPLATES = (CHATML, LLAMA2, BLOCKS, MACROS)
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def plainly_rendered(template: str, **variables: Any) -> str:
    """Jinja's sandbox with the options that transformers sets, and nothing of ours."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = lambda x, indent=None: json.dumps(
        x, ensure_ascii=False, indent=indent
    )
    return environment.from_string(template).render(**variables)


def rendered(template: str, messages: Any = None, **variables: Any) -> str:
    given = [{"role": "user", "content": "x"}] if messages is None else messages
    return ChatTemplate(template).render(given, **variables)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_equals_the_plain_sandbox(template: str, prompt: bool) -> None:
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2]):
        expected = plainly_rendered(
            template, messages=messages, add_generation_prompt=prompt, **VARIABLES
        )
        found = rendered(template, messages, add_generation_prompt=prompt, **VARIABLES)
        assert found == expected
        assert found


def test_known_text() -> None:
    assert rendered(CHATML, MESSAGES[1:2]) == (
        "<|im_start|>system\nDefault<|im_end|>\n<|im_start|>user\n Hi  <|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert rendered(LLAMA2, MESSAGES[:2], **VARIABLES).startswith("<s>[INST] <<SYS>>\nBe <brief>")


def test_json_is_not_escaped_for_html() -> None:
    value = {"b": "<日&>", "a": [1, None]}
    assert rendered("{{ x | tojson }}", x=value) == '{"b": "<日&>", "a": [1, null]}'
    assert rendered("{{ x | tojson(indent=2) }}", x=[1]) == "[\n  1\n]"
    assert rendered("{{ x | tojson(ensure_ascii=true, sort_keys=true) }}", x=value) == (
        '{"a": [1, null], "b": "<\\u65e5&>"}'
    )


def test_what_transformers_adds() -> None:
    year = datetime.now().year
    assert abs(int(rendered("{{ strftime_now('%Y') }}")) - year) <= 1
    assert (
        rendered("a{% generation %}b{{ bos_token }}{% endgeneration %}c", bos_token="x") == "abxc"
    )
    with pytest.raises(InvalidValue, match="only user and assistant"):
        rendered("{{ raise_exception('only user and assistant') }}")
    with pytest.raises(InvalidValue, match="short format"):
        rendered("{{ strftime_now('%Y' * 1000) }}")


def test_named_templates() -> None:
    forms: list[Any] = [
        {"default": "d", "tool_use": "t"},
        [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}],
    ]
    for form in forms:
        template = ChatTemplate(form)
        assert template.render(MESSAGES) == "d"
        assert template.render(MESSAGES, tools=[{"name": "f"}]) == "t"
        assert template.render(MESSAGES, name="tool_use") == "t"
        with pytest.raises(InvalidValue, match=r"'rag'.*default.*tool_use"):
            template.render(MESSAGES, name="rag")
    for none in (None, "", {}, []):
        with pytest.raises(InvalidValue, match="no chat template"):
            ChatTemplate(none).render(MESSAGES)
    assert ChatTemplate("plain").render(MESSAGES, tools=[{}]) == "plain"


def test_the_messages_are_left_alone() -> None:
    messages = [{"role": "user", "content": "x", "extra": [1]}]
    rendered("{% set m = messages[0] %}{{ m.extra }}", messages)
    assert messages == [{"role": "user", "content": "x", "extra": [1]}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert rendered("{{ messages[0].content[0].text }}", parts) == "hi"
    assert rendered("{{ messages | length }}", []) == "0"


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ("hello", InvalidType, "list of mappings"),
        (None, InvalidType, "list of mappings"),
        ({"role": "user"}, InvalidType, "list of mappings"),
        (["hello"], InvalidType, r"messages\[0\]"),
        ([{"content": "x"}], InvalidValue, "'role'"),
        ([{"role": 3, "content": "x"}], InvalidValue, "'role'"),
        ([{"role": "user", "content": b"x"}], InvalidType, r"messages\[0\]\['content'\]"),
    ],
)
def test_wrong_messages(messages: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ChatTemplate(CHATML).render(messages)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for", "no valid Jinja: line 1"),
        ("a\n{{ 'x' | nosuchfilter }}", "nosuchfilter"),
        ("{% endfor %}", "no valid Jinja"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "compiled|Jinja"),
        ("x" * (1 << 20) + "y", "characters"),
        ("{% include 'other' %}", "fails|refuses"),
        ("{{ missing.attribute }}", "missing"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0] + 1 }}", "TypeError"),
        ("{{ [1].index(2) }}", "ValueError"),
    ],
)
def test_broken_templates_are_a_sentence(template: str, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        rendered(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].clear() }}",
        "{% macro f() %}{% endmacro %}{{ f.__class__ }}",
        "{{ (messages | first).__class__ }}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_forbidden_attributes_are_refused(template: str) -> None:
    with pytest.raises(InvalidValue, match="refuses this conversation"):
        rendered(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(999999999) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [1] * 10**9 }}",
        "{{ 10 ** (10 ** 10) }}",
    ],
)
def test_endless_work_is_refused_at_once(template: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InvalidValue):
        rendered(template)
    assert time.perf_counter() - start < 5


def test_long_conversations_are_rendered() -> None:
    many = [{"role": ("user", "assistant")[i % 2], "content": f"message {i}"} for i in range(4001)]
    for template in (CHATML, LLAMA2):
        assert "message 4000" in rendered(template, many, **VARIABLES)


def test_a_failed_rendering_leaves_the_template_usable() -> None:
    template = ChatTemplate("{% if messages[0].content == 'bad' %}{{ 'a' * 10**9 }}{% endif %}ok")
    for _ in range(2):
        assert template.render([{"role": "user", "content": "good"}]) == "ok"
        with pytest.raises(InvalidValue):
            template.render([{"role": "user", "content": "bad"}])
