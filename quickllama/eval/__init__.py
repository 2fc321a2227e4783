"""Evaluation: how well a model answers questions about long texts, by one method or another.

    from quickllama import Model
    from quickllama.eval import evaluate
    results = evaluate(Model.from_pretrained("smollm2"), "needle", lengths=["4k", "16k"],
                       methods=["heads", "qllm"], out="results", progress=True)
    print(results.markdown())

The same from a shell: ``quickllama eval``; in pytest: ``@pytest.mark.longcontext``. Tasks, methods
and what is measured: docs/evaluation.md.
"""

from __future__ import annotations

from quickllama.eval.methods import METHODS
from quickllama.eval.runner import evaluate
from quickllama.eval.settings import Settings
from quickllama.eval.summary import Results
from quickllama.eval.tasks import MADE, READ

__all__ = ["MADE", "METHODS", "READ", "Results", "Settings", "evaluate"]
