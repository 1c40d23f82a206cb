#!/usr/bin/env python
"""Learn to recognise spoken numbers, dates and telephone phrases from real recordings, then look at what was learned.

    python scripts/demo.py --output demo_output

Composes sentences from sample_corpus/, trains scripts/recipes/prompts_demo.yaml on them (about 8 minutes on 2 cores),
and reports: error rates with hard and soft decoding on unseen sentences and on held-out whole prompts, the learned α,
the share of exact zeros, and how far the heads' stops lie from the true ends of the words. Writes the checkpoint, a
transcript through transformers' pipeline, report.json and pictures to --output.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "demo_output", help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--corpus", type=Path, default=ROOT / "sample_corpus", help="the recordings")
    parser.add_argument("--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="override recipe values")
    parser.add_argument("--sentences", type=int, default=5000, help="composed for training (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import soundfile
import torch
from transformers import pipeline
from transformers.utils.logging import disable_progress_bar

from hf_entmax_asr.analysis import plot_alphas, plot_attention_maps, plot_boundaries, plot_scores, save_png
from hf_entmax_asr.analysis.sparsity import ScoreHistogram, SparsityMeter
from hf_entmax_asr.analysis.word_ends import WordEndErrors, best_heads, word_end_errors
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.corpora.prompts import read_word_times, write_compositions
from hf_entmax_asr.error_messages import reports_errors
from hf_entmax_asr.metrics import Scores
from hf_entmax_asr.recognition import SpeechSeq2SeqCollator, decoding_as, recognise
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.recognition.utterances import Utterances, prepare_split, seconds_per_position
from hf_entmax_asr.training import read_history

RECIPE = ROOT / "scripts" / "recipes" / "prompts_demo.yaml"
LONGEST_PROMPT_S = 12.0  # one long clip in a batch costs more than it teaches
BATCH = 50  # utterances examined at a time


def train(data: Path, run: Path, overrides: list[str]) -> None:
    """scripts/train.py, as a user would start it; goes on with a run that was stopped."""
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--recipe", str(RECIPE)]
    command += ["--data", str(data), "--output", str(run)]
    command += ["--set", *overrides] if overrides else []
    command += ["--resume"] if (run / "last").exists() else []
    print("$ python", " ".join(command[1:]), flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(
            f"demo.py: training ended with status {status}; start the demo again to go on from its last checkpoint"
        )


def score(model: Any, processor: Any, split: Utterances) -> dict[str, Any]:
    """Error rates by decoding; "hard" is what the checkpoint does by itself."""
    collate = SpeechSeq2SeqCollator(processor)
    own = model.config.firing_rule
    other = "threshold" if own == "cumulative" else "cumulative"
    ways = {"hard": ("hard", own), f"hard, {other} rule": ("hard", other), "soft": ("soft", own)}
    if model.config.cross_attention == "full":
        ways = {"full": ("soft", own)}
    result = {}
    for name, (decoding, rule) in ways.items():
        with decoding_as(model, decoding, rule):
            texts = recognise(
                model, processor.tokenizer, split.frames, lambda indices: collate([split.example(i) for i in indices])
            )
        result[name] = Scores.of(split.texts, texts).as_dict()
    return result


@torch.no_grad()
def examine(
    model: Any, processor: Any, split: Utterances, word_times: dict[str, Any]
) -> tuple[SparsityMeter, ScoreHistogram, WordEndErrors | None]:
    """Zeros of the self-attention maps, the distribution of their weights, and distances to the true word ends."""
    meter, histogram, errors = SparsityMeter(), ScoreHistogram(), None
    collate = SpeechSeq2SeqCollator(processor)
    for first in range(0, len(split), BATCH):
        rows = range(first, min(first + BATCH, len(split)))
        batch = collate([split.example(i) for i in rows])
        inputs = {name: batch[name] for name in ("input_features", "attention_mask")}
        made = model.generate(**inputs, return_dict_in_generate=True, **generation_limit(model, inputs))
        sequences = made.sequences
        out = model(**inputs, decoder_input_ids=sequences[:, :-1], use_cache=False, output_attentions=True)
        source = model.position_mask(inputs["attention_mask"])
        target = sequences[:, :-1].ne(model.config.pad_token_id)
        for layer, weights in enumerate(out.encoder_attentions):
            meter.update({f"encoder.layers.{layer}.self_attn": weights}, source, source)
            histogram.update(weights, source, source)
        for layer, weights in enumerate(out.decoder_attentions):
            meter.update({f"decoder.layers.{layer}.self_attn": weights}, target, target.new_ones(target.shape), True)
        if made.boundaries:
            tokens = [processor.tokenizer.convert_ids_to_tokens(ids) for ids in sequences[:, 1:].tolist()]
            times = [word_times[split.ids[i]] for i in rows]
            here = word_end_errors(
                made.boundaries,
                tokens,
                [[word for word, _, _ in words] for words in times],
                [[end for _, _, end in words] for words in times],
                seconds_per_position(model, processor),
                first_layer=model.config.first_monotonic_layer,
            )
            errors = here if errors is None else errors + here
    return meter, histogram, errors


def generation_limit(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"max_length": None, "max_new_tokens": model.config.positions_of(inputs["input_features"].shape[1])}


def report_heads(model: Any, meter: SparsityMeter) -> dict[str, dict[str, list[float]]]:
    """α and share of exact zeros of every head, by module."""
    alphas = model.alphas()
    return {
        name: {
            "alpha": [round(a, 3) for a in alphas[name].tolist()] if name in alphas else [],
            "zero_share": [round(share, 4) for share in counts.zero_share.tolist()],
            "support_size": [round(size, 2) for size in counts.support_size.tolist()],
        }
        for name, counts in meter.counts.items()
    }


def report_word_ends(held_out: WordEndErrors | None, test: WordEndErrors | None) -> list[dict[str, Any]]:
    """The three best heads, chosen on validation data, as they do on test data.

    None of full cross-attention (None), or where no word was recognised right.
    """
    if held_out is None or test is None or not len(held_out.seconds) or not len(test.seconds):
        return []
    chosen = [(head.layer, head.head) for head in best_heads(held_out, count=3)]
    return [
        {
            "layer": head.layer,
            "head": head.head,
            "median_absolute_ms": round(1000 * head.median_absolute_seconds),
            "median_signed_ms": round(1000 * head.median_signed_seconds),
            "share_within_120_ms": round(head.share_within, 3),
            "words": head.words,
        }
        for head in test.scores(chosen)
    ]


@torch.no_grad()
def draw(
    model: Any, processor: Any, split: Utterances, words: list, head: tuple[int, int] | None, index: int, folder: Path
) -> list[Path]:
    """Pictures of one utterance: encoder maps, and the heads' stops over the spectrogram."""
    batch = SpeechSeq2SeqCollator(processor)([split.example(index)])
    inputs = {name: batch[name] for name in ("input_features", "attention_mask")}
    made = model.generate(**inputs, return_dict_in_generate=True, **generation_limit(model, inputs))
    maps = model.model.encoder(**inputs, output_attentions=True).attentions
    alphas = [model.alphas().get(f"encoder.layers.{layer}.self_attn") for layer in range(len(maps))]
    seconds = seconds_per_position(model, processor)
    text = split.texts[index]
    figure = plot_attention_maps(
        [layer[0] for layer in maps],
        seconds,
        alphas=alphas if alphas[0] is not None else None,
        title=f"Encoder self-attention of “{text}”",
    )
    pictures = [save_png(figure, folder / "encoder_maps.png")]
    if head is not None:
        figure = plot_boundaries(
            inputs["input_features"][0],
            [stops[0] for stops in made.boundaries],
            processor.tokenizer.convert_ids_to_tokens(made.sequences[0, 1:].tolist()),
            head,
            seconds,
            words=[word for word, _, _ in words],
            word_ends=[end for _, _, end in words],
            first_layer=model.config.first_monotonic_layer,
            title=f"Where each head stopped to write “{text}”",
        )
        pictures.append(save_png(figure, folder / "boundaries.png"))
    return pictures


def transcribe_through_pipeline(model: Any, processor: Any, audio: Path) -> str:
    """The text that transformers' stock pipeline makes of one file."""
    recognise_speech: Any = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    waveform, sampling_rate = soundfile.read(audio, dtype="float32")
    return recognise_speech({"raw": waveform, "sampling_rate": sampling_rate})["text"]


def show_scores(title: str, scores: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}")
    for name, s in scores.items():
        print(
            f"  {name:24} WER {s['wer']:5.1f} %   CER {s['cer']:5.1f} %   "
            f"(ins {s['insertions']}, del {s['deletions']}, sub {s['substitutions']}; {s['reference_words']} words)"
        )


def show(report: dict[str, Any]) -> None:
    show_scores("Unseen compositions (same recordings, new sentences)", report["test"])
    show_scores("Held-out whole prompts (words and sentences never heard)", report["heldout_prompts"])
    print("\nSelf-attention, one figure per head      α                              exact zeros")
    for name, heads in report["heads"].items():
        alphas = " ".join(f"{a:.2f}" for a in heads["alpha"]) or "-"
        print(f"  {name:30} {alphas:34} {' '.join(f'{100 * z:3.0f} %' for z in heads['zero_share'])}")
    if report["word_ends"]:
        print("\nDistance of a head's stop from the true end of the word (heads chosen on the validation split)")
    for head in report["word_ends"]:
        print(
            f"  layer {head['layer']}, head {head['head']}: median {head['median_absolute_ms']} ms "
            f"(signed {head['median_signed_ms']:+d}), {100 * head['share_within_120_ms']:.0f} % within 120 ms, "
            f"{head['words']} words"
        )
    print(f"\nThrough pipeline(): {report['pipeline']['file']}\n  said  {report['pipeline']['reference']}")
    print(f"  heard {report['pipeline']['text']}")


@reports_errors("demo.py")
def main() -> int:
    arguments = parse()
    started = time.monotonic()
    disable_progress_bar()
    output, run = arguments.output, arguments.output / "run"
    data = output / "data"
    made = write_compositions(
        arguments.corpus,
        data,
        train=arguments.sentences,
        validation=min(100, arguments.sentences),
        test=min(200, arguments.sentences),
        longest_prompt_s=LONGEST_PROMPT_S,
    )
    print("Data:", "; ".join(f"{name} {s['clips']} clips, {s['hours']:.2f} h" for name, s in made["splits"].items()))
    training_started = time.monotonic()
    train(data, run, arguments.set)
    training_minutes = round((time.monotonic() - training_started) / 60, 2)

    model, processor = load_recogniser(str(run / "best"))
    rows, word_times = load_folder(data), read_word_times(data)
    splits = {name: prepare_split(rows[name], processor) for name in ("validation", "test")}
    whole_prompts = rows["heldout_prompts"]
    whole_prompts = whole_prompts.select(range(min(len(whole_prompts), arguments.sentences)))
    splits["heldout_prompts"] = prepare_split(whole_prompts, processor)
    meter, histogram, test_ends = examine(model, processor, splits["test"], word_times["test"])
    _, _, held_out_ends = examine(model, processor, splits["validation"], word_times["validation"])
    word_ends = report_word_ends(held_out_ends, test_ends)

    example = int(splits["test"].frames.argsort()[len(splits["test"]) // 2])  # of median length
    audio = data / "test" / rows["test"][example]["audio"]["path"]
    head = (word_ends[0]["layer"], word_ends[0]["head"]) if word_ends else None
    pictures = draw(
        model, processor, splits["test"], word_times["test"][splits["test"].ids[example]], head, example, output
    )
    history = read_history(run / "history.jsonl")
    if model.alphas():
        pictures.append(save_png(plot_alphas(history), output / "alphas.png"))
    pictures.append(save_png(plot_scores({model.config.encoder_transform: histogram}), output / "scores.png"))

    report = {
        "test": score(model, processor, splits["test"]),
        "heldout_prompts": score(model, processor, splits["heldout_prompts"]),
        "heads": report_heads(model, meter),
        "encoder_zero_share": round(histogram.zero_share, 4),
        "word_ends": word_ends,
        "pipeline": {
            "file": str(audio),
            "reference": splits["test"].texts[example],
            "text": transcribe_through_pipeline(model, processor, audio),
        },
        "parameters": model.num_parameters(),
        "training_minutes": training_minutes,
        "minutes": round((time.monotonic() - started) / 60, 2),
    }
    write_text_atomically(output / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    show(report)
    print(f"\nCheckpoint: {run / 'best'}\nPictures:   {', '.join(str(p) for p in pictures)}")
    print(f"Everything took {report['minutes']:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
