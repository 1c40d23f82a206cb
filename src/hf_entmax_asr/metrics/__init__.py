"""Scores: functions of texts, never of models.

errors            word and character errors, their alignments, the check for deletion collapse
scores            both rates of a set of utterances
significance      confidence intervals and the matched-pair test
latency           how far text lags behind speech
report            the aligned HTML page and the most frequent confusions
evaluate_metrics  WER and CER as metrics of the library `evaluate`
"""

from typing import Any

from hf_entmax_asr.metrics.errors import Edit, ErrorCounts, align, count_edits, deletion_collapse, error_counts
from hf_entmax_asr.metrics.latency import (
    Lagging,
    boundary_coverage,
    first_token_delay,
    lagging,
    last_token_delay,
    streamability,
    token_emission_delays,
)
from hf_entmax_asr.metrics.report import confusions, html_report
from hf_entmax_asr.metrics.scores import Scores
from hf_entmax_asr.metrics.significance import (
    BootstrapDifference,
    Interval,
    MatchedPairs,
    bootstrap_difference,
    bootstrap_interval,
    error_segments,
    matched_pairs,
    rate_standard_error,
)

__all__ = [
    "CER",
    "WER",
    "BootstrapDifference",
    "Edit",
    "ErrorCounts",
    "Interval",
    "Lagging",
    "MatchedPairs",
    "Scores",
    "align",
    "bootstrap_difference",
    "bootstrap_interval",
    "boundary_coverage",
    "confusions",
    "count_edits",
    "deletion_collapse",
    "error_counts",
    "error_segments",
    "first_token_delay",
    "html_report",
    "lagging",
    "last_token_delay",
    "matched_pairs",
    "rate_standard_error",
    "streamability",
    "token_emission_delays",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `evaluate` takes a second to import, may be absent, and in a program that lies beside
    # scripts/evaluate.py the name would mean that file.
    if name in ("WER", "CER"):
        from hf_entmax_asr.metrics import evaluate_metrics

        return getattr(evaluate_metrics, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
