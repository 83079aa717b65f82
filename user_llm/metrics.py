"""How good answers are: metrics as monoids.

A metric holds exact sums over the answers seen so far, counts or fractions: merging is exact in any
order and grouping, and a mean is taken once, by `compute`, never of means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

NDCG_DEPTH = 10
RECALL_DEPTHS = (1, 5, NDCG_DEPTH)
BLEU_ORDERS = 4  # n-grams of up to four tokens, as in the paper

M = TypeVar("M", bound="Metric")


@dataclass(frozen=True)
class Metric:
    """A monoid: `empty` is neutral, `merge` adds sum to sum, `compute` gives named values."""

    @classmethod
    def empty(cls: type[M]) -> M:
        """The metric of no answers; its `compute` gives no values."""
        return cls()

    def merge(self: M, other: M) -> M:
        """The metric of the answers of both."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return type(self)(*(_sum(a, b) for a, b in pairs))

    def compute(self) -> dict[str, float]:
        """The values by name, over all answers."""
        raise NotImplementedError


def _sum(a: Any, b: Any) -> Any:
    """Of numbers, or of as many in tuples; an empty tuple is neutral."""
    if isinstance(a, tuple) and a and b:
        return tuple(x + y for x, y in zip(a, b, strict=True))
    return a + b


@dataclass(frozen=True)
class Ranking(Metric):
    """How far up the wanted item stands, from how often it stood at each of the first places."""

    hits: tuple[int, ...] = (0,) * NDCG_DEPTH  # hits[i]: answers with the target at rank i + 1
    count: int = 0

    @staticmethod
    def from_ranks(ranks: Int[np.ndarray, " B"]) -> "Ranking":
        """The metric of answers whose target stands at these ranks, of which 1 is the best.

        Raises:
          ValueError: a rank is below 1.
        """
        if ranks.size and ranks.min() < 1:
            raise ValueError(f"rank {ranks.min()} is below 1; ranks count from 1")
        bins = np.bincount(ranks[ranks <= NDCG_DEPTH], minlength=NDCG_DEPTH + 1)
        return Ranking(tuple(bins[1:].tolist()), len(ranks))

    @staticmethod
    def from_lists(answers: Sequence[Sequence[Any]], targets: Sequence[Any]) -> "Ranking":
        """The metric of lists of items, best first; a target that its list lacks is a miss."""
        ranks = [
            list(items).index(target) + 1 if target in items else NDCG_DEPTH + 1
            for items, target in zip(answers, targets, strict=True)
        ]
        return Ranking.from_ranks(np.asarray(ranks, np.int64))

    def compute(self) -> dict[str, float]:
        """Recall at 1, 5 and 10, and NDCG at 10 with one relevant item: 1 / log2(1 + rank)."""
        if not self.count:
            return {}
        recall = {f"recall_at_{k}": sum(self.hits[:k]) / self.count for k in RECALL_DEPTHS}
        gain = np.dot(self.hits, 1 / np.log2(np.arange(NDCG_DEPTH) + 2))
        return recall | {f"ndcg_at_{NDCG_DEPTH}": float(gain) / self.count}


@dataclass(frozen=True)
class Accuracy(Metric):
    """The share of answers that are their target."""

    correct: int = 0
    count: int = 0

    @staticmethod
    def from_answers(answers: Sequence[Any], targets: Sequence[Any]) -> "Accuracy":
        """The metric of answers compared with their targets by `==`."""
        return Accuracy(sum(a == t for a, t in zip(answers, targets, strict=True)), len(targets))

    def compute(self) -> dict[str, float]:
        """`accuracy`, between 0 and 1."""
        return {"accuracy": self.correct / self.count} if self.count else {}


@dataclass(frozen=True)
class MacroF1(Metric):
    """The harmonic mean of precision and recall, of each label, and of these the plain mean."""

    right: tuple[int, ...] = ()  # by label: how often it was said where it was wanted
    said: tuple[int, ...] = ()
    wanted: tuple[int, ...] = ()

    @staticmethod
    def from_answers(
        answers: Sequence[str], targets: Sequence[str], labels: Sequence[str]
    ) -> "MacroF1":
        """The metric of answers, of which those that are no label count for none."""
        pairs = list(zip(answers, targets, strict=True))
        return MacroF1(
            tuple(sum(a == t == label for a, t in pairs) for label in labels),
            tuple(sum(a == label for a, _ in pairs) for label in labels),
            tuple(sum(t == label for _, t in pairs) for label in labels),
        )

    def compute(self) -> dict[str, float]:
        """`macro_f1`, between 0 and 1; a label that is neither said nor wanted has none: 0."""
        if not self.right:
            return {}
        sums = zip(self.right, self.said, self.wanted, strict=True)
        return {"macro_f1": float(np.mean([2 * r / max(s + w, 1) for r, s, w in sums]))}


@dataclass(frozen=True)
class RatingError(Metric):
    """How far ratings that were said are from those that were given."""

    absolute: Fraction = Fraction(0)
    squared: Fraction = Fraction(0)
    count: int = 0

    @staticmethod
    def from_ratings(answers: Sequence[float], targets: Sequence[float]) -> "RatingError":
        """The metric of ratings and of what each should have been."""
        off = [abs(Fraction(a) - Fraction(t)) for a, t in zip(answers, targets, strict=True)]
        return RatingError(sum(off, Fraction(0)), sum((x * x for x in off), Fraction(0)), len(off))

    def compute(self) -> dict[str, float]:
        """`mae` and `rmse`, in stars."""
        if not self.count:
            return {}
        return {
            "mae": float(self.absolute / self.count),
            "rmse": math.sqrt(self.squared / self.count),
        }


@dataclass(frozen=True)
class TextOverlap(Metric):
    """How much of the wanted text was written: mean ROUGE F1 and corpus BLEU.

    ROUGE (Lin, 2004) as `rouge-score` computes it without stemming, BLEU (Papineni et al., 2002) as
    `sacrebleu` does by default, from the n-gram counts that it aggregates over a corpus.
    """

    rouge_1: Fraction = Fraction(0)
    rouge_l: Fraction = Fraction(0)
    matched: tuple[int, ...] = (0,) * BLEU_ORDERS  # n-grams of the answers found in their targets
    written: tuple[int, ...] = (0,) * BLEU_ORDERS  # n-grams of the answers
    answer_tokens: int = 0
    target_tokens: int = 0
    count: int = 0

    @staticmethod
    def from_texts(answers: Sequence[str], targets: Sequence[str]) -> "TextOverlap":
        """The metric of texts, each with its one reference."""
        if not targets:
            return TextOverlap()
        rouge, bleu = _scorers()
        rows = [rouge.score(t, a) for a, t in zip(answers, targets, strict=True)]
        corpus = bleu.corpus_score(answers, [targets])
        return TextOverlap(
            sum((Fraction(row["rouge1"].fmeasure) for row in rows), Fraction(0)),
            sum((Fraction(row["rougeL"].fmeasure) for row in rows), Fraction(0)),
            tuple(map(int, corpus.counts)),
            tuple(map(int, corpus.totals)),
            corpus.sys_len,
            corpus.ref_len,
            len(rows),
        )

    def compute(self) -> dict[str, float]:
        """`rouge_1` and `rouge_l` between 0 and 1, `bleu` between 0 and 100."""
        if not self.count:
            return {}
        _, bleu = _scorers()
        corpus = bleu.compute_bleu(
            list(self.matched),
            list(self.written),
            self.answer_tokens,
            self.target_tokens,
            smooth_method=bleu.smooth_method,
        )
        return {
            "rouge_1": float(self.rouge_1 / self.count),
            "rouge_l": float(self.rouge_l / self.count),
            "bleu": corpus.score,
        }


@cache
def _scorers() -> tuple[Any, Any]:
    """The ROUGE and the BLEU scorer; importing them takes seconds."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    return RougeScorer(["rouge1", "rougeL"]), BLEU(max_ngram_order=BLEU_ORDERS)
