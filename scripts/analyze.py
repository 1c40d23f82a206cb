#!/usr/bin/env python
"""What the attention of a checkpoint does on a data set.

    python scripts/analyze.py runs/demo/best DATA --out report/ --labels pocketsphinx

CHECKPOINT is a folder or a Hub repository; DATA is a folder as scripts/train.py takes it. Prints a summary and writes
OUT/analysis.json (its fields are explained in src/hf_entmax_asr/analysis/document.py), pictures, and
OUT/index.html, one file with everything in it that opens from disk. With --compare, other checkpoints stand beside it
on the same data: OUT/comparison.json, and the maps of one utterance in OUT/maps_by_checkpoint.png:

    python scripts/analyze.py runs/entmax/best DATA --out report/ --compare runs/softmax/best runs/sparsemax/best
"""

import argparse
import dataclasses
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

from program_options import corpora


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("data", help="folder of the data, or of a corpus as shipped")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--corpus", choices=corpora(), default="folder", help="the form of the data (default: folder)")
    parser.add_argument("--split", default="test", help="sub-folder of the data (default: test)")
    parser.add_argument("--lower-case", action="store_true", help="of the texts, as data.lower_case in training")
    parser.add_argument("--max-utterances", type=int, help="only the first so many")
    parser.add_argument(
        "--labels", help="phonemes: a folder of ID.TextGrid or *.ctm files, or 'pocketsphinx' to align English"
    )
    parser.add_argument("--tier", help="tier of the phonemes in the TextGrids (default: phones and the like)")
    parser.add_argument("--diagonal-from", type=float, default=0.5, help="relative CAD of a linguistic head")
    parser.add_argument("--phonetic-from", type=float, default=1.5, help="same-phoneme lift of a phonetic head")
    parser.add_argument("--max-seconds", type=float, default=30.0, help="longer utterances are left out (default: 30)")
    parser.add_argument("--frames-per-batch", type=int, default=6000, help="padded 10 ms frames in a batch")
    parser.add_argument("--examples", type=int, default=2, help="utterances to draw and listen to (default: 2)")
    parser.add_argument("--card", action="store_true", help="also tell it in CHECKPOINT/README.md, the model card")
    parser.add_argument("--compare", nargs="+", default=[], metavar="OTHER", help="checkpoints to show beside this one")
    parser.add_argument("--json-only", action="store_true", help="no pictures, no page")
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.analysis.comparison import (
    Compared,
    Comparison,
    ComparisonRow,
    comparison_rows,
    save_comparison,
    short_names,
)
from hf_entmax_asr.analysis.document import AnalysisDocument, EncoderMeasures, ProbeMeasures, Vector, save_analysis
from hf_entmax_asr.analysis.findings import findings
from hf_entmax_asr.analysis.phoneme_aligner import PocketsphinxAligner
from hf_entmax_asr.analysis.phonemes import LabelError, read_label_folder
from hf_entmax_asr.analysis.report import write_report
from hf_entmax_asr.atomic_files import check_folder_writable
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.recognition import DataError
from hf_entmax_asr.recognition.attention_section import find_card, write_attention_section
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.recognition.inspection import analyze
from hf_entmax_asr.recognition.phoneme_labels import Labels
from hf_entmax_asr.recognition.report_examples import example_of
from hf_entmax_asr.recognition.utterances import read_split
from hf_entmax_asr.training import read_history


def load_labels(source: str | None, tier: str | None) -> Labels | None:
    if source is None:
        return None
    return PocketsphinxAligner() if source == "pocketsphinx" else read_label_folder(source, tier)


def summary(document: AnalysisDocument) -> str:
    """A table of the encoder's layers, and what the rest says."""
    accuracy = document.probe.accuracy if isinstance(document.probe, ProbeMeasures) else None
    header = f"{'layer':>5} {'CAD':>6} {'uniform':>7} {'vertical':>8} {'zeros':>6} {'lift':>6}"
    lines = [
        f"{document.utterances} utterances, {document.audio_seconds / 60:.1f} minutes",
        header + (f" {'probe':>6}" if accuracy else "") + "  roles of the heads",
    ]
    if accuracy:
        lines.append(f"{'input':>5} {'':>37}  {_percent(accuracy[0]):>6}".replace("  ", " ", 1))
    lines += [_layer_line(module, accuracy) for module in document.encoder]
    lines += findings(document)
    for reason, ids in document.skipped.items():
        lines.append(f"{len(ids)} left out: {reason}: {', '.join(ids[:5])}{', …' if len(ids) > 5 else ''}")
    return "\n".join(lines)


def _layer_line(module: EncoderMeasures, accuracy: Vector | None) -> str:
    cells = [
        f"{module.layer:>5} {_decimals(_mean(module.cad)):>6} {_decimals(module.uniform.cad):>7}",
        f"{_decimals(_mean(module.verticality)):>8} {_percent(_mean(module.zero_share)):>6}",
        f"{_decimals(_mean(module.same_phoneme_lift), 2):>6}" if module.same_phoneme_lift else f"{'':>6}",
    ]
    if accuracy:
        cells.append(f"{_percent(accuracy[module.layer + 1]):>6}")
    return f"{' '.join(cells)}  {', '.join(role or 'not known' for role in module.role)}"


def _mean(values: Vector) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def most_waited_for(document: AnalysisDocument) -> tuple[int, int] | None:
    """The head that is most often the last: when it stops, a token can be written."""
    if document.monotonic is None:
        return None
    shares = [share or 0 for share in document.monotonic.last_share]
    return document.monotonic.heads[shares.index(max(shares))]


def history_of(checkpoint: str) -> list[dict[str, Any]]:
    """The history of the run that the checkpoint lies in, if it lies in one (RUN/checkpoints/step-…)."""
    folder = Path(checkpoint).resolve().parent
    return read_history(folder.parent / "history.jsonl") if folder.name == "checkpoints" else []


def measure(
    checkpoint: str, recogniser: tuple[Any, Any], rows: Any, labels: Labels | None, arguments: argparse.Namespace
) -> AnalysisDocument:
    """The analysis of one checkpoint, with a progress bar.

    Raises:
        DataError: the data cannot be analysed with it.
    """
    with tqdm(total=len(rows), unit="utt", disable=None, desc=checkpoint) as bar:
        document = analyze(
            *recogniser,
            rows,
            labels=labels,
            frames_per_batch=arguments.frames_per_batch,
            max_seconds=arguments.max_seconds,
            diagonal_from=arguments.diagonal_from,
            phonetic_from=arguments.phonetic_from,
            progress=bar.update,
        )
    return dataclasses.replace(document, checkpoint=checkpoint, data=f"{arguments.data}, {arguments.split}")


def compare(
    names: list[str], documents: list[AnalysisDocument], recognisers: list[tuple[Any, Any]], row: dict[str, Any] | None
) -> Comparison:
    """All checkpoints beside each other, with their maps of one row of the data (none: without maps)."""
    compared = []
    for name, document, (model, processor) in zip(names, documents, recognisers, strict=True):
        maps = example_of(model, processor, row) if row is not None else None
        compared.append(
            Compared(
                name=name,
                document=document,
                parameters=model.num_parameters(),
                maps=maps.maps if maps else (),
                alphas=maps.alphas if maps else None,
            )
        )
    return Comparison(compared, row["id"] if row else "", row["duration"] if row else 0.0)


def comparison_summary(rows: list[ComparisonRow]) -> str:
    """A line for each checkpoint: means over the heads of its encoder."""
    width = max(len("checkpoint"), *(len(row.name) for row in rows))
    lines = [f"{'checkpoint':<{width}} {'transform':<10} {'parameters':>11} {'zeros':>6} {'CAD':>6} {'entropy':>7}"]
    for row in rows:
        measures = f"{_percent(row.zero_share):>6} {_decimals(row.cad):>6} {_decimals(row.entropy_nats, 2):>7}"
        lines.append(f"{row.name:<{width}} {row.encoder_transform:<10} {row.parameters:>11,} {measures}")
    return "\n".join(lines)


def _names(checkpoints: list[str]) -> list[str]:
    try:
        return short_names(checkpoints)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _decimals(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


@reports_errors("analyze.py")
def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    check_folder_writable(arguments.out)  # before the work
    checkpoints = [arguments.checkpoint, *arguments.compare]
    try:
        if not arguments.json_only and importlib.util.find_spec("matplotlib") is None:
            raise ImportError("pictures need matplotlib: pip install 'hf_entmax_asr[plots]', or give --json-only")
        if arguments.card:
            find_card(arguments.checkpoint)  # that there is none is known now, not after the analysis
        names = _names(checkpoints)
        labels = load_labels(arguments.labels, arguments.tier)
        rows = read_split(
            arguments.data, arguments.split, arguments.corpus, arguments.max_utterances, arguments.lower_case
        )
        recognisers = [load_recogniser(checkpoint, arguments.device) for checkpoint in checkpoints]
        documents = [
            measure(checkpoint, recogniser, rows, labels if number == 0 else None, arguments)
            for number, (checkpoint, recogniser) in enumerate(zip(checkpoints, recognisers, strict=True))
        ]
    except (CheckpointError, DataError, LabelError, FileNotFoundError, ImportError) as error:
        print(f"analyze.py: {error}", file=sys.stderr)
        return 1
    document, (model, processor) = documents[0], recognisers[0]
    target = save_analysis(document, arguments.out / "analysis.json")
    print(summary(document))
    if arguments.card:
        print(f"written: {write_attention_section(arguments.checkpoint, document)}")
    usable = [i for i, seconds in enumerate(rows["duration"]) if seconds <= arguments.max_seconds]
    comparison = None
    if arguments.compare:
        comparison = compare(names, documents, recognisers, None if arguments.json_only else rows[usable[0]])
        beside = comparison_rows(comparison.compared)
        save_comparison(beside, arguments.out / "comparison.json")
        print(comparison_summary(beside))
    if not arguments.json_only:
        head = most_waited_for(document)
        examples = [example_of(model, processor, rows[i], head) for i in usable[: arguments.examples]]
        target = write_report(
            document,
            arguments.out,
            examples=examples,
            history=history_of(arguments.checkpoint),
            seconds_per_frame=processor.feature_extractor.seconds_per_frame,
            comparison=comparison,
        )
    print(f"written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
