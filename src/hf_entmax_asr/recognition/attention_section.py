"""What an analysis found, as a section of the model card of a checkpoint."""

import itertools
from pathlib import Path

from hf_entmax_asr.analysis.document import AnalysisDocument
from hf_entmax_asr.analysis.findings import findings
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.recognition.checkpoint import CheckpointError

ATTENTION_HEADING = "## What the attention does"  # as in model_cards/template.md


def attention_text(analysis: AnalysisDocument | None) -> str:
    """What an analysis found, as Markdown; without one, how to make it."""
    if analysis is None:
        return "Not measured yet; `scripts/analyze.py CHECKPOINT DATA --out FOLDER --card` does, and writes it here."
    data = Path(analysis.data).name if analysis.data is not None else "data that is not named"
    when = f" after {analysis.step:,} steps" if analysis.step is not None else ""
    measured = f"Measured{when} on {analysis.utterances:,} utterances ({analysis.audio_seconds / 60:.1f} minutes)"
    return f"{measured} of {data}.\n\n" + "\n".join(f"- {sentence}" for sentence in findings(analysis))


def find_card(checkpoint: str | Path) -> Path:
    """The model card of a checkpoint folder.

    Raises:
        CheckpointError: there is no such folder, or no README.md in it.
    """
    card = Path(checkpoint) / "README.md"
    if not card.is_file():
        raise CheckpointError(
            f"{checkpoint} is no local folder with a README.md, so there is no model card to write into. Checkpoints "
            "of scripts/train.py have one; a Hub repository must be downloaded first (`hf download`)."
        )
    return card


def write_attention_section(checkpoint: str | Path, analysis: AnalysisDocument) -> Path:
    """Put what an analysis found into the card of a checkpoint folder, in place of what stood under that heading.

    The section runs to the next heading. A card that lacks it gets it at its end. Returns the card's path.

    Raises:
        CheckpointError: see `find_card`.
    """
    card = find_card(checkpoint)
    lines = card.read_text(encoding="utf-8").rstrip().split("\n")
    if ATTENTION_HEADING in lines:
        start = lines.index(ATTENTION_HEADING)
        rest = list(itertools.dropwhile(lambda line: not line.startswith("#"), lines[start + 1 :]))
    else:
        start, rest = len(lines) + 1, []
        lines.append("")
    section = [ATTENTION_HEADING, "", *attention_text(analysis).split("\n")]
    text = "\n".join([*lines[:start], *section, *([""] if rest else []), *rest])
    write_text_atomically(card, text + "\n")
    return card
