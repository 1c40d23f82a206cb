"""WER and CER as `evaluate` metrics: without the network, equal to jiwer, raw and normalised."""

from pathlib import Path

import jiwer
import pytest

from hf_entmax_asr.metrics import CER, WER
from support.apart import run_apart

SAID = ["The cat sat.", "on the mat", "ｔ 而对楼市"]
HEARD = ["the cat", "on a mat", "T而对 楼时"]


@pytest.fixture
def metrics(tmp_path):
    return WER(cache_dir=str(tmp_path)), CER(cache_dir=str(tmp_path))


def test_the_rates_are_those_of_jiwer(metrics):
    wer, cer = metrics
    words = wer.compute(predictions=HEARD, references=SAID)
    assert words["wer"] == pytest.approx(jiwer.wer(SAID, HEARD))
    assert {k: words[k] for k in ("insertions", "deletions", "substitutions", "reference_length")} == {
        "insertions": 0,
        "deletions": 1,
        "substitutions": 4,
        "reference_length": 8,
    }
    assert set(words) == {"wer", "insertions", "deletions", "substitutions", "reference_length"}
    assert cer.compute(predictions=HEARD, references=SAID)["cer"] == pytest.approx(jiwer.cer(SAID, HEARD))


def test_the_normalised_rate_names_its_rule(metrics):
    wer, cer = metrics
    words = wer.compute(predictions=HEARD[:2], references=SAID[:2], normalization="basic")
    assert (words["wer"], words["normalized_wer"]) == pytest.approx((3 / 6, 2 / 6))
    assert words["normalization"] == "basic"
    characters = cer.compute(predictions=HEARD[2:], references=SAID[2:], normalization="aishell1")
    assert characters["normalized_cer"] == pytest.approx(1 / 5)
    with pytest.raises(ValueError, match="no text rule 'whisper'"):
        wer.compute(predictions=["a"], references=["a"], normalization="whisper")


def test_batches_add_up(metrics):
    wer, _ = metrics
    whole = wer.compute(predictions=HEARD, references=SAID)
    wer.add_batch(predictions=HEARD[:2], references=SAID[:2])
    wer.add(prediction=HEARD[2], reference=SAID[2])
    assert wer.compute() == whole


def test_everything_else_works_without_evaluate(tmp_path):
    """And a file of that name beside a program, as in scripts/, is not taken for the library."""
    (tmp_path / "evaluate.py").write_text("")
    program = tmp_path / "program.py"
    program.write_text(
        "from hf_entmax_asr import metrics\n"
        "print(metrics.error_counts(['a b'], ['a']).deletions)\n"
        "try:\n    metrics.WER\nexcept ImportError as error:\n    print(error)\n"
    )
    result = run_apart(program, folder=tmp_path)
    first, second = result.stdout.splitlines()
    assert first == "1"
    assert "pip install 'hf_entmax_asr[train]'" in second
    assert str(Path(program).parent) not in result.stderr


def test_names_that_do_not_exist():
    from hf_entmax_asr import metrics

    with pytest.raises(AttributeError, match="no attribute 'MER'"):
        metrics.MER  # noqa: B018
