"""Scores of classifiers and regressors, by scikit-learn and SciPy (extra `glue`); of texts, by rouge-score
(extra `rouge`).
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable, Sequence

from neuroada_cli.errors import ResourceError

Numbers = Sequence[float]


def accuracy(predictions: Numbers, labels: Numbers) -> float:
    return sum(p == y for p, y in zip(predictions, labels, strict=True)) / len(labels)


def matthews(predictions: Numbers, labels: Numbers) -> float:
    """Matthews' correlation coefficient (CoLA); 0 for a constant prediction."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single class in both; the value is still right
        return float(matthews_corrcoef(labels, predictions))


def f1(predictions: Numbers, labels: Numbers) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def pearson(predictions: Numbers, labels: Numbers) -> float:
    """Pearson's correlation (STS-B); 0 for a constant prediction, where it is not defined."""
    return _correlation("pearsonr", predictions, labels)


def spearman(predictions: Numbers, labels: Numbers) -> float:
    return _correlation("spearmanr", predictions, labels)


def _correlation(name: str, predictions: Numbers, labels: Numbers) -> float:
    import scipy.stats

    if len(set(predictions)) < 2 or len(set(labels)) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input; the value is still right
        return float(getattr(scipy.stats, name)(predictions, labels).statistic)


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": f1,
    "pearson": pearson,
    "spearman": spearman,
}


class _Words:
    """Words of any script, in lower case; of Chinese and Japanese every character. What rouge-score takes
    for words by itself are runs of a-z and 0-9: any two texts in other letters score 0.
    """

    SINGLE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    WORD = re.compile(rf"[{SINGLE}]|(?:(?![{SINGLE}])[^\W_])+")

    def tokenize(self, text: str) -> list[str]:
        return self.WORD.findall(text.lower())


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 over the rows: of the longest common subsequence of words, and of the words they share.

    Raises ImportError without the package rouge-score.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL", "rouge1"], tokenizer=_Words())
    pairs = zip(references, predictions, strict=True)
    scores = [scorer.score(reference, prediction) for reference, prediction in pairs]
    names = {"rouge_l": "rougeL", "rouge_1": "rouge1"}
    return {ours: sum(s[theirs].fmeasure for s in scores) / len(scores) for ours, theirs in names.items()}


def can_rouge() -> bool:
    return importlib.util.find_spec("rouge_score") is not None


def require(names: Sequence[str]) -> None:
    """Before a run: raises ResourceError when a metric's package is not installed."""
    for name in names:
        try:
            if name in ("matthews", "f1"):
                import sklearn.metrics  # noqa: F401
            elif name in ("pearson", "spearman"):
                import scipy.stats  # noqa: F401
        except ImportError:
            raise ResourceError(
                f"the metric {name} needs a package that is not installed",
                fix="pip install 'neuroada-cli[glue]'",
            ) from None
