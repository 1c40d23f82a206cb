"""WER and CER as metrics of the library `evaluate`, without the network that `evaluate.load("wer")` needs."""

from collections.abc import Sequence
from pathlib import Path

try:
    import datasets

    from evaluate import Metric, MetricInfo
except ImportError as error:
    raise ImportError(
        "WER and CER need the libraries evaluate and datasets: pip install 'hf_entmax_asr[train]'. Where they are "
        f"installed, a file evaluate.py beside the program stands in the way. ({error})"
    ) from error

from hf_entmax_asr.corpora import text_rule
from hf_entmax_asr.metrics.errors import error_counts

CITATION = """@inproceedings{morris2004wer,
  title={From {WER} and {RIL} to {MER} and {WIL}: improved evaluation measures for connected speech recognition},
  author={Morris, Andrew Cameron and Maier, Viktoria and Green, Phil},
  booktitle={Interspeech},
  year={2004}
}"""
INPUTS = """
Args:
    predictions: recognised texts.
    references: what was said, in the same order.
    normalization: a rule for a second score, "none", "basic", "english" or that of a corpus, as "wsj"; all of them:
        hf_entmax_asr.corpora.text_rules().
    spelling_table: for "english", see hf_entmax_asr.text.english_rule.

Returns:
    A dict: the rate under the metric's name (0.123 is 12.3 %; infinity where the references are empty and something was
    recognised), insertions, deletions, substitutions, reference_length; and, with a rule other than "none",
    "normalization" with its name and the rate again under "normalized_<name>".
"""


class _ErrorRate(Metric):
    unit: str
    rate_name: str

    def _info(self) -> MetricInfo:
        text = datasets.Value("string")
        return MetricInfo(
            description=f"Errors of recognised {self.unit}s over the {self.unit}s of the reference, by jiwer.",
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=["https://github.com/jitsi/jiwer"],
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        normalization: str = "none",
        spelling_table: str | Path | None = None,
    ) -> dict[str, float | str]:
        rule = text_rule(normalization, spelling_table)
        counts = error_counts(references, predictions, self.unit)
        result: dict[str, float | str] = {
            self.rate_name: counts.rate,
            "insertions": counts.insertions,
            "deletions": counts.deletions,
            "substitutions": counts.substitutions,
            "reference_length": counts.reference_length,
        }
        if normalization != "none":
            said, heard = ([rule(text) for text in side] for side in (references, predictions))
            result["normalization"] = normalization
            result[f"normalized_{self.rate_name}"] = error_counts(said, heard, self.unit).rate
        return result


class WER(_ErrorRate):
    """Word error rate: `WER().compute(predictions=[...], references=[...], normalization="basic")`."""

    unit, rate_name = "word", "wer"


class CER(_ErrorRate):
    """Character error rate: `CER().compute(predictions=[...], references=[...])`. Spaces inside a text count."""

    unit, rate_name = "character", "cer"
