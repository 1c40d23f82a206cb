"""Good inputs of every kind that the programs read: a small corpus, a tiny run, and what the programs make of both."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

RATE_HZ = 16000
WORDS = ("abe", "bead", "cab", "dace", "fade", "bed")
SPLITS = {"train": 8, "test": 3}
RECIPE = {
    "model": {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "subsampling_channels": 2,
        "ctc_loss_weight": 0.3,
        "energy_bias_init": "auto",
    },
    "features": {"feature_size": 20, "cmvn": "running"},
    "batching": {"frames_per_batch": 700},
    "augmentation": {"frequency_mask_bins": 4, "time_mask_frames": 10},
    "schedule": {"warmup_steps": 2, "max_steps": 2},
    "evaluation": {"tensorboard": False, "log_every_steps": 1},
}
AUDIO = {"wav": "WAV", "flac": "FLAC", "aiff": "AIFF", "au": "AU", "mp3": "MP3", "sph": "NIST"}

LAST_MADE = "whisper_start"
Call = Callable[..., None]  # runs a program with these arguments, and raises where it fails


def sound(words: list[str], seed: int) -> np.ndarray:
    """A tone for each letter, 90 ms, and pauses between words; some noise over all."""
    time = np.arange(int(0.09 * RATE_HZ)) / RATE_HZ
    letters = f" {' '.join(words)} "
    tones = [0.3 * np.sin(2 * np.pi * (ord(c) - 90) * 100 * time) if c != " " else 0 * time for c in letters]
    audio = np.concatenate(tones)
    return audio + np.random.default_rng(seed).normal(0, 0.002, len(audio))


def write_corpus(root: Path) -> None:
    """Splits with audio, metadata.csv and word_times.json; beside them the same split with metadata.jsonl."""
    draw = random.Random(0)
    for split, count in SPLITS.items():
        folder = root / split
        folder.mkdir(parents=True)
        rows, times = [], {}
        for number in range(count):
            words = draw.sample(WORDS, 2)
            soundfile.write(folder / f"{number:03d}.wav", sound(words, number), RATE_HZ)
            rows.append({"file_name": f"{number:03d}.wav", "text": " ".join(words), "speaker": f"s{number % 2}"})
            ends = 0.09 + np.cumsum([0.09 * len(words[0]), 0.09, 0.09 * len(words[1])])
            times[f"{number:03d}"] = [[words[0], 0.09, ends[0]], [words[1], ends[1], ends[2]]]
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (folder / "word_times.json").write_text(json.dumps(times), encoding="utf-8")
    lines = [json.dumps(row) for row in rows]
    other = root.parent / "corpus_jsonl" / "test"
    other.mkdir(parents=True)
    for audio in (root / "test").glob("*.wav"):
        (other / audio.name).write_bytes(audio.read_bytes())
    (other / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_labels(root: Path) -> None:
    """Words of both splits as a CTM file each; letters of the test split as TextGrids and as a CTM file."""
    letters, phones = [], root / "phones_ctm"
    for split in SPLITS:
        times = json.loads((root / "corpus" / split / "word_times.json").read_text(encoding="utf-8"))
        lines = [f"{name} 1 {a:.3f} {b - a:.3f} {word}" for name, words in times.items() for word, a, b in words]
        (root / f"{split}.ctm").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "textgrids").mkdir()
    for name, words in times.items():
        marks = [(a + i * 0.09, a + (i + 1) * 0.09, c.upper()) for word, a, _ in words for i, c in enumerate(word)]
        letters += [f"{name} 1 {a:.3f} {b - a:.3f} {c}" for a, b, c in marks]
        (root / "textgrids" / f"{Path(name).name}.TextGrid").write_text(textgrid(marks), encoding="utf-8")
    phones.mkdir()
    (phones / "phones.ctm").write_text("\n".join(letters) + "\n", encoding="utf-8")


def textgrid(marks: list[tuple[float, float, str]]) -> str:
    """In Praat's long form, one tier."""
    head = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {marks[-1][1]:.3f}"]
    head += ["tiers? <exists>", "size = 1", "item []:", "    item [1]:", '        class = "IntervalTier"']
    head += ['        name = "phones"', f"        xmin = {marks[0][0]:.3f}", f"        xmax = {marks[-1][1]:.3f}"]
    head.append(f"        intervals: size = {len(marks)}")
    for number, (start, end, label) in enumerate(marks, 1):
        head += [f"        intervals [{number}]:", f"            xmin = {start:.3f}", f"            xmax = {end:.3f}"]
        head.append(f'            text = "{label}"')
    return "\n".join(head) + "\n"


def write_language_model(path: Path) -> None:
    """A bigram model of the corpus's words, with one order of back-off."""
    units = ("<s>", "</s>", "<unk>", *WORDS)
    lines = ["\\data\\", f"ngram 1={len(units)}", f"ngram 2={len(WORDS)}", "", "\\1-grams:"]
    lines += [f"{-0.5 - 0.1 * i:.4f}\t{unit}\t-0.3010" for i, unit in enumerate(units)]
    lines += ["", "\\2-grams:", *(f"-0.4\t<s> {word}" for word in WORDS), "", "\\end\\"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_results(root: Path) -> None:
    """What evaluate.py writes, of two systems."""
    for name, wrong in (("first", "bed"), ("second", "cab")):
        rows = [{"id": f"test/{i}", "reference": f"{w} bed", "hypothesis": f"{w} {wrong}"} for i, w in enumerate(WORDS)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "spelling.json").write_text(json.dumps({"colour": "color", "bed": "bead"}), encoding="utf-8")


def write_whisper(folder: Path) -> None:
    """A random Whisper of width 16 as transformers saves it, with a tokenizer of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    names = ("<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")
    tokenizer.add_special_tokens(list(names))
    end, start, *_, no_times = (tokenizer.token_to_id(name) for name in names)
    ids: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    shape: dict[str, Any] = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "num_mel_bins": 80,
        "max_target_positions": 40,
    }
    shape |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=tokenizer.get_vocab_size(), **shape, **ids))
    model.generation_config = GenerationConfig(
        max_length=40, no_timestamps_token_id=no_times, is_multilingual=False, suppress_tokens=[1, 2], **ids
    )
    model.save_pretrained(folder)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), names[0])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)


def write_good_inputs(root: Path, call: Call) -> None:
    """Everything, in the folder `root`; `call` runs the programs that make some of it."""
    write_corpus(root / "corpus")
    write_labels(root)
    write_language_model(root / "lm.arpa")
    write_results(root)
    write_whisper(root / "whisper")
    audio = sound(list(WORDS[:3]), 0)
    for suffix, form in AUDIO.items():
        soundfile.write(root / f"speech.{suffix}", audio, RATE_HZ, format=form)
    text = "\n".join(" ".join(random.Random(i).sample(WORDS, 3)) for i in range(40)) + "\n"
    (root / "text.txt").write_text(text, encoding="utf-8")
    recipe = RECIPE | {"data": {"path": str(root / "corpus"), "validation_split": "test"}}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    call("train", "--recipe", root / "recipe.yaml", "--output", root / "run", "--stop-after", 1)
    step = next((root / "run" / "checkpoints").iterdir())
    (root / "checkpoint").mkdir()
    for file in filter(Path.is_file, step.iterdir()):
        (root / "checkpoint" / file.name).write_bytes(file.read_bytes())
    settings = root / "checkpoint" / "generation_config.json"
    short = json.loads(settings.read_text(encoding="utf-8")) | {"max_new_tokens": 4}  # texts say nothing here
    settings.write_text(json.dumps(short, indent=2) + "\n", encoding="utf-8")
    report = root / "report"
    call("analyze", root / "checkpoint", root / "corpus", "--out", report, "--json-only", "--device", "cpu")
    aligned = root / LAST_MADE  # with full cross-attention, which align.py wants
    call("convert_whisper", root / "whisper", "--output", aligned)
