"""Chat templates: Jinja programs that come with a model and are treated as untrusted code.

A template is rendered as transformers does it (`utils/chat_template_utils.py`,
``_compile_jinja_template``): in Jinja's immutable sandbox, with ``trim_blocks``, ``lstrip_blocks``,
loop controls, the ``generation`` block, ``raise_exception``, ``strftime_now`` and a ``tojson`` that
does not escape HTML. On top of that, forbidden attributes are an error instead of an empty text,
and one multiplication cannot take all memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quickllama.errors import InvalidType, InvalidValue

__all__ = ["ChatTemplate"]

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_TIME_FORMAT_CHARACTERS = 200
MAX_PRODUCT = 1 << 20  # entries of a repeated text or list; bits of a power


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %} ... {% endgeneration %}`` marks the assistant's text for training; here it
    is its content."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if not isinstance(form, str) or len(form) > MAX_TIME_FORMAT_CHARACTERS:
        raise jinja2.TemplateError("strftime_now takes a short format")
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, where what is forbidden is an error and products have an end."""

    intercepted_binops = frozenset({"*", "**"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse ``attribute`` instead of calling it undefined."""
        raise SecurityError(f"it asks for {attribute!r} of a {type(obj).__name__}")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``left * right`` and ``left ** right``, if the result has a reasonable size."""
        if operator == "**":
            size = left.bit_length() * right if isinstance(left, int) else 0
        else:
            times, many = (left, right) if isinstance(left, int) else (right, left)
            size = times * len(many) if isinstance(many, str | list | tuple) else 0
        if isinstance(size, int | float) and size > MAX_PRODUCT:
            raise SecurityError("it makes a larger value than any template needs")
        return super().call_binop(context, operator, left, right)


def _environment() -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _check_messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InvalidType(
            "messages should be a list of mappings with 'role' and 'content', but is "
            f"{type(messages).__name__}"
        )
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidType(
                f"messages[{index}] should be a mapping with 'role' and 'content', but is "
                f"{type(message).__name__}"
            )
        role = message.get("role")
        if not isinstance(role, str):
            raise InvalidValue(
                f"messages[{index}] needs a 'role' such as 'system', 'user' or 'assistant'; got "
                f"{role!r}"
            )
        content = message.get("content")
        if "content" in message and not isinstance(content, str | list | None):
            raise InvalidType(
                f"messages[{index}]['content'] should be a str, but is {type(content).__name__}"
            )
        checked.append(dict(message))
    return checked


class ChatTemplate:
    """One or several named chat templates.

    ``template`` is the template, or a mapping of names to templates, or a list of ``{"name",
    "template"}`` as tokenizer_config.json has it, or None, which :meth:`render` refuses. Compiled
    at the first rendering; used by any number of threads.
    """

    def __init__(
        self, template: str | Mapping[str, str] | Sequence[Mapping[str, str]] | None
    ) -> None:
        named: dict[str, str]
        if template is None or isinstance(template, str):
            named = {"default": template} if template else {}
        elif isinstance(template, Mapping):
            named = dict(template)
        else:
            named = {entry["name"]: entry["template"] for entry in template}
        for name, text in named.items():
            if not isinstance(text, str):
                raise InvalidType(
                    f"the chat template {name!r} should be a str, but is {type(text).__name__}"
                )
        self.templates = named
        self._compiled: dict[str, jinja2.Template] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        name: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        ``name`` chooses a named template; without it "tool_use" is taken where ``tools`` are given
        and there is one, else "default". ``variables`` are seen by the template: special tokens as
        ``bos_token``, ``eos_token``; ``tools``, ``documents`` and others.

        Raises InvalidType for messages that are none, InvalidValue if there is no such template, if
        it is no valid Jinja, refuses the conversation (``raise_exception``), does something
        forbidden.
        """
        checked = _check_messages(messages)
        variables.setdefault("tools", None)
        variables.setdefault("documents", None)
        if name is None:
            name = "tool_use" if variables["tools"] and "tool_use" in self.templates else "default"
        template = self._compile(name)
        try:
            return template.render(
                messages=checked, add_generation_prompt=add_generation_prompt, **variables
            )
        except jinja2.TemplateError as problem:
            reason = problem.message or type(problem).__name__
            raise InvalidValue(
                f"the model's chat template refuses this conversation: {reason}"
            ) from problem
        except RecursionError as problem:
            raise InvalidValue("the model's chat template calls itself without end") from problem
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
            raise InvalidValue(
                f"the model's chat template fails on this conversation: {type(problem).__name__}: "
                f"{problem}; check the roles and contents, or give another template"
            ) from problem

    def _compile(self, name: str) -> jinja2.Template:
        if name in self._compiled:
            return self._compiled[name]
        if not self.templates:
            raise InvalidValue(
                "this model has no chat template; build the prompt as plain text, or give a "
                "template"
            )
        if name not in self.templates:
            raise InvalidValue(
                f"this model has no chat template named {name!r}, but {sorted(self.templates)}; "
                "name one of them"
            )
        text = self.templates[name]
        if len(text) > MAX_TEMPLATE_CHARACTERS:
            raise InvalidValue(
                f"the model's chat template has {len(text)} characters; at most "
                f"{MAX_TEMPLATE_CHARACTERS} are accepted"
            )
        try:
            template = _environment().from_string(text)
        except jinja2.TemplateSyntaxError as problem:
            raise InvalidValue(
                f"the model's chat template is no valid Jinja: line {problem.lineno}: "
                f"{problem.message}"
            ) from problem
        except (RecursionError, SyntaxError, ValueError, OverflowError) as problem:
            raise InvalidValue(
                f"the model's chat template cannot be compiled: {type(problem).__name__}"
            ) from problem
        self._compiled[name] = template
        return template
