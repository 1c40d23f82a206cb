#!/usr/bin/env python
"""Score a checkpoint on a data set.

    python scripts/evaluate.py runs/demo/best DATA --split test --num-beams 5 --output scores.jsonl --report scores.html

CHECKPOINT is a folder or a Hub repository; DATA is a folder as scripts/train.py takes it. Printed are the errors of the
texts as they are, with the confidence interval of the word error rate (bootstrap over utterances), the errors after
normalisation by a named rule, and the most frequent confusions. The output file has one JSON line per utterance: id,
reference, hypothesis, and the counts of its word errors; scripts/compare.py tests two such files against each other.
The report is a web page with every utterance aligned.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from program_options import DECODING, add_decoding_options, add_language_model_options, corpora, text_rules


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("data", help="folder of the data, or of a corpus as shipped")
    parser.add_argument("--corpus", choices=corpora(), default="folder", help="the form of the data (default: folder)")
    parser.add_argument("--split", default="test", help="sub-folder of the data (default: test)")
    parser.add_argument("--lower-case", action="store_true", help="of the references, as data.lower_case in training")
    parser.add_argument("--num-beams", "--num_beams", type=int, default=1, help="beam width (default: 1, greedy)")
    add_decoding_options(parser)
    parser.add_argument("--frames-per-batch", type=int, default=16000, help="padded 10 ms frames in a batch")
    parser.add_argument("--max-utterances", type=int, help="score only the first so many")
    parser.add_argument("--output", type=Path, help="file for the utterances, as JSON lines")
    parser.add_argument("--report", type=Path, help="file for the aligned utterances, as a web page")
    parser.add_argument(
        "--unit",
        choices=("word", "character"),
        help="of the report and the confusions (default: that of the corpus; word of a folder)",
    )
    parser.add_argument(
        "--normalization",
        choices=text_rules(),
        help="rule of the second scores (default: that of the corpus; basic of a folder)",
    )
    parser.add_argument("--spelling-table", type=Path, help="for --normalization english: Whisper's normalizer.json")
    add_language_model_options(parser)
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.atomic_files import check_writable, write_text_atomically
from hf_entmax_asr.corpora import CORPORA, text_rule
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.metrics import Edit, Scores, align, bootstrap_interval, confusions, count_edits, html_report
from hf_entmax_asr.ngram_lm import LanguageModelError, with_language_model
from hf_entmax_asr.recognition import DataError, SpeechSeq2SeqCollator, decoding_as, recognise
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.recognition.evaluation import is_monotonic
from hf_entmax_asr.recognition.utterances import Utterances, prepare_split, read_split
from hf_entmax_asr.text import TextRule

CONFUSIONS_PRINTED = 10


def score_as_usual(arguments: argparse.Namespace) -> None:
    """The unit and the rule of the corpus, where none are given."""
    corpus = CORPORA[arguments.corpus]
    arguments.unit = arguments.unit or corpus.scoring_unit
    arguments.normalization = arguments.normalization or corpus.scoring_rule.name


def write_utterances(
    path: Path, utterances: Utterances, hypotheses: list[str], word_alignments: list[list[Edit]]
) -> None:
    lines = []
    rows = zip(utterances.ids, utterances.texts, hypotheses, word_alignments, strict=True)
    for name, reference, hypothesis, edits in rows:
        counts = count_edits(edits)
        record = {
            "id": name,
            "reference": reference,
            "hypothesis": hypothesis,
            "substitutions": counts.substitutions,
            "insertions": counts.insertions,
            "deletions": counts.deletions,
            "reference_words": counts.reference_length,
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text_atomically(path, "".join(lines))


def search_of(arguments: argparse.Namespace, model: Any) -> str:
    """How the texts were found, in one line."""
    parts = [f"{arguments.num_beams} beams" if arguments.num_beams > 1 else "greedy"]
    weight = getattr(model.generation_config, "ctc_weight", None) or 0
    if weight == 1:
        parts.append("CTC alone")
    else:
        if is_monotonic(model):
            parts.append(f"{model.config.monotonic_decoding} monotonic heads")
            if model.config.monotonic_decoding == "hard" and model.config.firing_probability != 0.5:
                parts.append(f"firing probability {model.config.firing_probability:g}")
        parts += [f"CTC (weight {weight:g})"] if weight else []
    if arguments.lm is None:
        return ", ".join([*parts, "no language model"])
    weights = f"weight {arguments.lm_weight:g}, insertion bonus {arguments.insertion_bonus:g}"
    return ", ".join([*parts, f"language model {arguments.lm} ({weights})"])


def summarise(
    utterances: Utterances, hypotheses: list[str], word_alignments: list[list[Edit]], rule: TextRule
) -> list[tuple[str, str]]:
    """(name, value) lines: scores as they are, their interval, scores by the rule, a warning where there is one."""
    scores = Scores.of(utterances.texts, hypotheses)
    lines = [("As they are", str(scores.words))]
    if scores.words.reference_length:
        counts = [count_edits(edits) for edits in word_alignments]
        interval = bootstrap_interval([c.errors for c in counts], [c.reference_length for c in counts])
        lines.append(("", f"WER within {interval}, bootstrap over {len(counts)} utterances"))
    lines.append(("", str(scores.characters)))
    if rule.name != "none":
        normalized = Scores.of([rule(text) for text in utterances.texts], [rule(text) for text in hypotheses])
        name = f"Normalised by the rule {rule.name!r}"
        lines += [(name, str(normalized.words)), ("", str(normalized.characters))]
        lines.append(("", f"({rule.description})"))
        if recounted := rule.recounted(scores.words.reference_length, normalized.words.reference_length):
            lines.append(("", f"({recounted})"))
    if scores.warning is not None:
        lines.append(("Warning", scores.warning))
    return lines


def print_scores(heading: str, summary: list[tuple[str, str]], alignments: list[list[Edit]]) -> None:
    print(heading)
    for name, value in summary:
        if name == "Warning":
            print(value)
        else:
            print(f"{name}:\n  {value}" if name else f"  {value}")
    listed = confusions(alignments, CONFUSIONS_PRINTED)
    if listed:
        pairs = (f"{edit.reference or '∅'} → {edit.hypothesis or '∅'} ({count})" for edit, count in listed)
        print(f"Most frequent confusions: {', '.join(pairs)}")


@reports_errors("evaluate.py")
def main() -> int:
    arguments = parse()
    score_as_usual(arguments)
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for path in filter(None, (arguments.output, arguments.report)):
        check_writable(path)  # before the work
    try:
        rule = text_rule(arguments.normalization, arguments.spelling_table)
    except (ValueError, FileNotFoundError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 1
    try:
        model, processor = load_recogniser(arguments.checkpoint, arguments.device, any_system=True)
        model = with_language_model(model, processor, arguments)
        rows = read_split(
            arguments.data,
            arguments.split,
            arguments.corpus,
            arguments.max_utterances,
            arguments.lower_case,
            empty_texts=True,
        )
        utterances = prepare_split(rows, processor)
        collate = SpeechSeq2SeqCollator(processor)
        with (
            decoding_as(model, **{name: getattr(arguments, name) for name in DECODING}),
            tqdm(total=len(utterances), unit="utt", disable=None) as bar,
        ):
            hypotheses = recognise(
                model,
                processor.tokenizer,
                utterances.frames,
                lambda indices: collate([utterances.example(i) for i in indices]),
                frames_per_batch=arguments.frames_per_batch,
                num_beams=arguments.num_beams,
                progress=bar.update,
            )
            search = search_of(arguments, model)
    except (CheckpointError, DataError, LanguageModelError, FileNotFoundError, ImportError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 1
    word_alignments = align(utterances.texts, hypotheses)
    shown = word_alignments if arguments.unit == "word" else align(utterances.texts, hypotheses, "character")
    if arguments.output is not None:
        write_utterances(arguments.output, utterances, hypotheses, word_alignments)
    summary = [("Search", search), *summarise(utterances, hypotheses, word_alignments, rule)]
    heading = f"{len(utterances)} utterances of {arguments.split}"
    print_scores(heading, summary, shown)
    if arguments.report is not None:
        title = f"{arguments.checkpoint}: {heading} of {arguments.data}"
        page = html_report(title, summary, utterances.ids, shown, arguments.unit)
        write_text_atomically(arguments.report, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
