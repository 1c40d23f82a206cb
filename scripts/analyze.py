#!/usr/bin/env python
"""What the attention of a checkpoint does on a data set.

    python scripts/analyze.py runs/demo/best DATA --out report/ --labels pocketsphinx

CHECKPOINT is a folder or a Hub repository; DATA is a folder as scripts/train.py takes it. Prints a summary and writes
OUT/analysis.json (its fields are explained at the top of src/hf_entmax_asr/training/inspection.py), pictures, and
OUT/index.html, one file with everything in it that opens from disk.
"""

import argparse
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.analysis.findings import findings
from hf_entmax_asr.analysis.phoneme_aligner import PocketsphinxAligner
from hf_entmax_asr.analysis.phonemes import LabelError, read_label_folder
from hf_entmax_asr.analysis.report import write_report
from hf_entmax_asr.corpora import CORPORA
from hf_entmax_asr.training import CheckpointError, DataError, read_history
from hf_entmax_asr.training.evaluation import load_recogniser
from hf_entmax_asr.training.examples import example_of
from hf_entmax_asr.training.inspection import Labels, analyze, save_analysis
from hf_entmax_asr.training.model_card import find_card, write_attention_section
from hf_entmax_asr.training.utterances import read_split


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub repository")
    parser.add_argument("data", help="folder of the data, or of a corpus as shipped")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--corpus", choices=CORPORA, default="folder", help="the form of the data (default: folder)")
    parser.add_argument("--split", default="test", help="sub-folder of the data (default: test)")
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
    parser.add_argument("--json-only", action="store_true", help="no pictures, no page")
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: a GPU where there is one)")
    return parser.parse_args()


def load_labels(source: str | None, tier: str | None) -> Labels | None:
    if source is None:
        return None
    return PocketsphinxAligner() if source == "pocketsphinx" else read_label_folder(source, tier)


def summary(document: dict[str, Any]) -> str:
    """A table of the encoder's layers, and what the rest says."""
    lines = [f"{document['utterances']} utterances, {document['audio_seconds'] / 60:.1f} minutes"]
    accuracy = (document["probe"] or {}).get("accuracy")
    header = f"{'layer':>5} {'CAD':>6} {'uniform':>7} {'vertical':>8} {'zeros':>6} {'lift':>6}"
    lines.append(header + (f" {'probe':>6}" if accuracy else "") + "  roles of the heads")
    if accuracy:
        lines.append(f"{'input':>5} {'':>37}  {_percent(accuracy[0]):>6}".replace("  ", " ", 1))
    for module in document["modules"].values():
        if module["kind"] != "encoder":
            continue
        row = f"{module['layer']:>5} {_mean(module['cad']):>6.3f} {module['uniform']['cad']:>7.3f}"
        row += f" {_mean(module['verticality']):>8.3f} {_percent(_mean(module['zero_share'])):>6}"
        lifts = module.get("same_phoneme_lift")
        row += f" {_mean(lifts):>6.2f}" if lifts else f" {'':>6}"
        row += f" {_percent(accuracy[module['layer'] + 1]):>6}" if accuracy else ""
        lines.append(f"{row}  {', '.join(role or 'not known' for role in module['role'])}")
    lines += findings(document)
    for reason, ids in document["skipped"].items():
        lines.append(f"{len(ids)} left out: {reason}: {', '.join(ids[:5])}{', …' if len(ids) > 5 else ''}")
    return "\n".join(lines)


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def most_waited_for(document: dict[str, Any]) -> tuple[int, int] | None:
    """The head that is most often the last: when it stops, a token can be written."""
    monotonic = document["monotonic"]
    if monotonic is None:
        return None
    shares = [share or 0 for share in monotonic["last_share"]]
    layer, head = monotonic["heads"][shares.index(max(shares))]
    return layer, head


def history_of(checkpoint: str) -> list[dict[str, Any]]:
    """The history of the run that the checkpoint lies in, if it lies in one (RUN/checkpoints/step-…)."""
    folder = Path(checkpoint).resolve().parent
    return read_history(folder.parent / "history.jsonl") if folder.name == "checkpoints" else []


def main() -> int:
    arguments = parse()
    disable_progress_bar()  # of loading and saving weights
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        if not arguments.json_only and importlib.util.find_spec("matplotlib") is None:
            raise ImportError("pictures need matplotlib: pip install 'hf_entmax_asr[plots]', or give --json-only")
        if arguments.card:
            find_card(arguments.checkpoint)  # that there is none is known now, not after the analysis
        labels = load_labels(arguments.labels, arguments.tier)
        rows = read_split(arguments.data, arguments.split, arguments.corpus, arguments.max_utterances)
        model, processor = load_recogniser(arguments.checkpoint, arguments.device)
        with tqdm(total=len(rows), unit="utt", disable=None) as bar:
            document = analyze(
                model,
                processor,
                rows,
                labels=labels,
                frames_per_batch=arguments.frames_per_batch,
                max_seconds=arguments.max_seconds,
                diagonal_from=arguments.diagonal_from,
                phonetic_from=arguments.phonetic_from,
                progress=bar.update,
            )
    except (CheckpointError, DataError, LabelError, FileNotFoundError, ImportError) as error:
        print(f"analyze.py: {error}", file=sys.stderr)
        return 1
    document |= {"checkpoint": arguments.checkpoint, "data": f"{arguments.data}, {arguments.split}"}
    target = save_analysis(document, arguments.out / "analysis.json")
    print(summary(document))
    if arguments.card:
        print(f"written: {write_attention_section(arguments.checkpoint, document)}")
    if not arguments.json_only:
        usable = [i for i, seconds in enumerate(rows["duration"]) if seconds <= arguments.max_seconds]
        head = most_waited_for(document)
        examples = [example_of(model, processor, rows[i], head) for i in usable[: arguments.examples]]
        hop_seconds = processor.feature_extractor.hop_ms / 1000
        history = history_of(arguments.checkpoint)
        target = write_report(
            document, arguments.out, examples=examples, history=history, seconds_per_frame=hop_seconds
        )
    print(f"written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
