"""A Jinja sandbox in which one rendering can do only so much work and make only so much text.

Jinja's own sandbox forbids attributes and bounds ``range``; it does not bound nested loops,
recursion that branches, or texts that double. Here every item of every loop and every call is a
step, all that is printed is counted, and operations that can make a big value of small ones are
checked before they run: one step could repeat a text a billion times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, NoReturn

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["Budget", "BudgetedEnvironment", "spending"]

MAX_STEPS = 200_000  # besides one for each character of the conversation
MAX_CHARACTERS = 1 << 22  # of any value made, besides what the conversation itself has
MAX_ENTRIES = 200_000  # of any value made, nested ones counted as often as they appear
MAX_VISITS = 1 << 24  # of entries while counting them
REPEATS = 32  # how often a template may repeat the conversation
MAX_POWER_BITS = 4096
MAX_WIDTH = 10_000
COUNTED, JOINED, MEASURED = "_counted", "_joined", "_measured"
FORBIDDEN_METHODS = ("translate", "maketrans")  # they multiply texts in ways not counted here
PADDING_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs")
SIZED_FILTERS = ("batch", "center", "indent", "slice", "truncate", "wordwrap", "round", "tojson")
_BIG_NUMBER = re.compile(r"\d{5,}")
_VARIABLE_WIDTH = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")


class Budget:
    """What one rendering may spend and has spent, for a conversation of so many characters."""

    def __init__(self, conversation_characters: int) -> None:
        self.steps = MAX_STEPS + conversation_characters
        self.characters = MAX_CHARACTERS + REPEATS * conversation_characters
        self.entries = MAX_ENTRIES + conversation_characters
        self.printed = 0
        self.visits = MAX_VISITS

    def step(self) -> None:
        """Count one item of a loop or one call."""
        self.steps -= 1
        if self.steps < 0:
            raise SecurityError("it does more steps than any template needs")

    def check_size(self, size: int) -> None:
        """Refuse to make a text or list of this many characters or entries."""
        if size > self.characters:
            raise SecurityError("it makes a larger text or list than any template needs")

    def print(self, text: str) -> None:
        """Count a text that is printed, into the output or into a variable."""
        self.printed += len(text)
        self.check_size(self.printed)
        self.step()

    def check_entries(self, value: object) -> None:
        """Refuse a nested value that would be huge once written out."""
        found = 0
        waiting = [value]
        while waiting:
            entry = waiting.pop()
            if isinstance(entry, dict):
                waiting.extend(entry.values())
            elif isinstance(entry, list | tuple):
                waiting.extend(entry)
            found += 1
            self.visits -= 1
            if found > self.entries or self.visits < 0 or len(waiting) > 8 * self.entries:
                raise SecurityError("it makes a larger list than any template needs")

    def check_made(self, value: object) -> None:
        """Refuse a value that grew too large; for operations that grow it by a small factor."""
        if isinstance(value, str):
            self.check_size(len(value))
        elif isinstance(value, list | tuple | dict):
            self.check_entries(value)


_current: ContextVar[Budget] = ContextVar("quickllama_template_budget")


@contextmanager
def spending(conversation_characters: int) -> Iterator[None]:
    """A new budget for the rendering inside; the size is that of what it renders."""
    token = _current.set(Budget(conversation_characters))
    try:
        yield
    finally:
        _current.reset(token)


def _counted(items: Any) -> Any:
    """The same items, each counted as a step."""
    if isinstance(items, Undefined):
        return items
    budget = _current.get()

    def count() -> Iterator[Any]:
        for item in items:
            budget.step()
            yield item

    return count()


def _joined(values: Iterable[Any]) -> str:
    """The operator ``~``."""
    texts = [str(value) for value in values]
    _current.get().check_size(sum(map(len, texts)))
    return "".join(texts)


def _measured(value: Any) -> Any:
    """The same list, tuple or mapping, if it is not too large."""
    _current.get().check_entries(value)
    return value


@pass_context
def _printed(_: Context, value: Any) -> Any:
    """What is about to be printed, counted."""
    text = str(value)
    _current.get().print(text)
    return text


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_widths(values: Iterable[object]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_WIDTH:
            raise SecurityError(f"it asks for a width of {value}")


def _check_format(form: str, sign: str, arguments: Iterable[object]) -> None:
    """Before a text is formatted, where each ``sign`` in ``form`` may put in an argument."""
    values = list(arguments)
    if _BIG_NUMBER.search(form) or _VARIABLE_WIDTH.search(form):
        raise SecurityError("it formats with a very large or variable width")
    _current.get().check_size(form.count(sign) * max(map(_size, values), default=0))


def _check_replace(text: str, old: object, new: object) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _current.get().check_size(len(text) + text.count(old) * len(new))


def _check_join(separator: object, values: Iterable[object]) -> None:
    texts = list(values)
    total = sum(len(str(value)) for value in texts) + _size(separator) * len(texts)
    _current.get().check_size(total)


def _check_text_call(text: str, name: str, arguments: list[Any]) -> None:
    """Before a method of a text that can make it much longer."""
    if name in FORBIDDEN_METHODS:
        raise SecurityError(f"it calls {name}")
    if name in PADDING_METHODS:
        _check_widths(arguments)
        tabs = text.count("\t") if name == "expandtabs" else 0
        _current.get().check_size(len(text) + tabs * max(map(abs, arguments), default=8))
    elif name == "replace" and len(arguments) >= 2:
        _check_replace(text, arguments[0], arguments[1])
    elif name == "join" and arguments and isinstance(arguments[0], list | tuple | str):
        _check_join(text, arguments[0])


def _check_filter(name: str, arguments: list[Any]) -> None:
    """Before a filter that can make its value much larger; ``arguments`` begin with the value."""
    rest = arguments[1:]
    if name in SIZED_FILTERS:
        _check_widths(rest)
    value = arguments[0] if arguments else None
    if name == "format" and isinstance(value, str):
        _check_format(value, "%", rest)
    elif name == "join" and isinstance(value, list | tuple | str):
        _check_join(rest[0] if rest else "", value)
    elif name == "replace" and isinstance(value, str) and len(rest) >= 2:
        _check_replace(value, rest[0], rest[1])
    elif name in ("indent", "wordwrap") and isinstance(value, str):
        widths = [entry if isinstance(entry, int) else _size(entry) for entry in rest]
        _current.get().check_size(len(value) * max(1, *widths, 1))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts as a step, and checks what it is asked to make and what it made."""

    @wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        budget = _current.get()
        budget.step()
        # Some filters get the environment or context first.
        passed = 1 if hasattr(function, "jinja_pass_arg") else 0
        _check_filter(name, [*arguments[passed:], *options.values()])
        made = function(*arguments, **options)
        budget.check_made(made)
        return made

    return guarded


def _check_operator(operator: str, left: Any, right: Any) -> None:
    budget = _current.get()
    if operator == "+":
        budget.check_size(_size(left) + _size(right))
    elif operator == "%" and isinstance(left, str):
        values = right if isinstance(right, tuple) else [right]
        _check_format(left, "%", right.values() if isinstance(right, dict) else values)
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int):
                budget.check_size(_size(value) * max(times, 0))
        if _bits(left) + _bits(right) > MAX_POWER_BITS:
            raise SecurityError("it computes a very large number")
    elif operator == "**" and _bits(left) * (abs(right) if _bits(right) else 1) > MAX_POWER_BITS:
        raise SecurityError("it computes a very large number")


class _Accounting(NodeTransformer):
    """Puts the filters above where loops, lists, texts and concatenations stand."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(COUNTED, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(JOINED, nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filter(MEASURED, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filter(MEASURED, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _filter(MEASURED, node)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        # Plain text of the template is printed through the counter as well.
        return nodes.Const(node.data, lineno=node.lineno)


def _filter(name: str, argument: nodes.Node) -> nodes.Filter:
    assert isinstance(argument, nodes.Expr)
    return nodes.Filter(argument, name, [], [], None, None, lineno=argument.lineno)


class BudgetedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with a budget; render inside ``with spending(...)``."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        # Without the optimizer nothing of the template runs while it is compiled.
        super().__init__(optimized=False, finalize=_printed, **options)
        self.globals.pop("lipsum", None)
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)
        self.filters |= {COUNTED: _counted, JOINED: _joined, MEASURED: _measured}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Make a filter known, under the budget."""
        self.filters[name] = _guarded(name, function)

    def budgeted(self, source: str) -> nodes.Template:
        """The parsed template with its loops, lists and texts under account."""
        tree = self.parse(source)
        _Accounting().visit(tree)
        tree.set_environment(self)
        return tree

    def call(self, context: Context, function: Any, *arguments: Any, **options: Any) -> Any:
        """Every call of a template is a step; methods of texts are checked for what they make."""
        budget = _current.get()
        budget.step()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            name = str(getattr(function, "__name__", ""))
            _check_text_call(owner, name, [*arguments, *options.values()])
        made = super().call(context, function, *arguments, **options)
        budget.check_made(made)
        return made

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make a big value."""
        _check_operator(operator, left, right)
        made = super().call_binop(context, operator, left, right)
        _current.get().check_made(made)
        return made

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` as the sandbox allows it, checked for what it makes."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form = str(value.__self__)

        def checked(*arguments: Any, **options: Any) -> str:
            values = [*arguments, *options.values()]
            for value in list(values):
                values.extend(value.values() if isinstance(value, dict) else ())
            _check_format(form, "{", [value if _size(value) else str(value) for value in values])
            return wrapped(*arguments, **options)

        return checked

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """A forbidden attribute is an error, also where the template only prints it."""
        raise SecurityError(f"it asks for the attribute {attribute!r} of a {type(obj).__name__}")
