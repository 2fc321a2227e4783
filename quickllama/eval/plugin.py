"""What the mark ``longcontext`` of the pytest plugin (``pytest_quickllama``) does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quickllama import checks
from quickllama.errors import InvalidType
from quickllama.eval.runner import evaluate
from quickllama.eval.summary import Results
from quickllama.eval.tables import length_name, wilson

if TYPE_CHECKING:
    from quickllama.model import Model

__all__ = ["gate"]


def gate(
    model: Model,
    task: str | None = None,
    *,
    min_accuracy: float | None = None,
    method: str = "heads",
    **settings: Any,
) -> tuple[Results, str | None]:
    """Results of one method, and why they are not good enough (None if they are).

    At every length the share of right answers must be ``min_accuracy``, 0 to 1, or more.
    ``settings``: as in :func:`quickllama.eval.evaluate`. Raises InvalidType or InvalidValue, and
    what ``evaluate`` raises.
    """
    if task is None or min_accuracy is None:
        raise InvalidType("it needs task= and min_accuracy=, for instance task='needle'")
    least = checks.number("min_accuracy", min_accuracy, low=0, high=1)
    if "methods" in settings:
        raise InvalidType("it compares one method with a limit: give method=, not methods=")
    results = evaluate(model, task, methods=[method], **settings)
    if not len(results):
        return results, f"{task} by {method} asked nothing: no question has the kinds asked for"
    lines = []
    for length in results.lengths:
        part = results.where(length=length)
        if part.accuracy < least:
            right = sum(row["correct"] for row in part.rows)
            low, high = wilson(right, len(part))
            lines.append(
                f"{task} by {method} at {length_name(length)} tokens: {right} of {len(part)} right "
                f"({100 * part.accuracy:.0f} %; 95 %: {100 * low:.0f} to {100 * high:.0f}), and "
                f"min_accuracy is {100 * least:g} %"
            )
    if not lines:
        return results, None
    return results, "\n".join([*lines, "", results.wrong_answers()])
