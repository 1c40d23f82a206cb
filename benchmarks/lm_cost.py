#!/usr/bin/env python
"""What a language model costs per step of decoding, by kind of token and language model and by number of hypotheses.

    python benchmarks/lm_cost.py [--checkpoint demo_output/run/best]

Texts are followed token by token, as a search would, each row another text. "first" is the mean time of a step with
empty caches; "again" that of a second search through the same texts, the least that a search which revisits words and
contexts can pay. The recogniser's scores are random, with the next token of the text far ahead. Small vocabularies: the
demo's sentences. Large ones: 20,000 made-up words and 4,000 Chinese characters with frequencies as 1 / rank. With a
checkpoint, the share of a whole `generate` (5 beams) that the language model takes.
"""

import argparse
import tempfile
import time
from pathlib import Path

from timing_options import parser


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(rounds=7)
    options.add_argument("--checkpoint", help="a recogniser of English letters, to measure whole searches with")
    return options.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import numpy as np
import torch

from hf_entmax_asr.corpora.sentences import draw_splits
from hf_entmax_asr.ngram_lm import LanguageModelFusion, NgramModel, train_ngram
from hf_entmax_asr.tokenization import train_bpe_tokenizer, train_character_tokenizer
from hf_entmax_asr.training.memory import keep_freed_memory
from timing import machine, table

SENTENCES = 5000
ROWS = (1, 5, 40)
BEAMS = 5


def made_up(entries: list[str], length: int, gap: str) -> list[str]:
    """Random texts of about `length` entries whose frequencies fall as 1 / rank."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, len(entries) + 1)
    lengths = random.integers(length // 2, 2 * length, size=SENTENCES)
    return [gap.join(random.choice(entries, n, p=share / share.sum())) for n in lengths]


def made_up_words(count: int) -> list[str]:
    random = np.random.default_rng(1)
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(random.choice(list("etaoinshrdlucmfw"), random.integers(2, 10)))] = None
    return list(words)


def systems(folder: Path) -> dict[str, tuple]:
    """Name -> (language model, tokenizer, texts)."""
    demo = draw_splits(0, {"train": SENTENCES})["train"]
    words = made_up(made_up_words(20_000), 10, " ")
    chinese = made_up([chr(0x4E00 + i) for i in range(4000)], 15, "")
    made: dict[str, tuple] = {}
    for name, texts, unit, order, tokenizer in (
        ("30 characters, word model", demo, "word", 3, train_character_tokenizer(demo)),
        ("30 characters, character model", demo, "character", 6, train_character_tokenizer(demo)),
        ("1,000 pieces, model of 20,000 words", words, "word", 3, train_bpe_tokenizer(words, 1000)),
        ("4,000 characters, character model", chinese, "character", 3, train_character_tokenizer(chinese)),
    ):
        path = folder / f"{len(made)}.arpa"
        train_ngram(texts, path, order=order, unit=unit)
        made[name] = NgramModel(path, unit=unit), tokenizer, texts
    return made


def follow(fusion: LanguageModelFusion, ids: torch.Tensor, vocabulary: int) -> float:
    """Mean seconds of a step through ids (rows, U), the recogniser being rather sure of them."""
    steps = []
    for length in range(1, ids.shape[1]):
        scores = torch.randn(len(ids), vocabulary, generator=torch.Generator().manual_seed(length)) * 3
        scores.scatter_(1, ids[:, length : length + 1], 15.0)
        steps.append((ids[:, :length], scores.log_softmax(-1)))
    start = time.perf_counter()
    for inputs in steps:
        fusion(*inputs)
    return (time.perf_counter() - start) / len(steps)


def per_step(rounds: int) -> list[list[object]]:
    lines: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, tokenizer, texts) in systems(Path(folder)).items():
            for rows in ROWS:
                first, again = [], []
                for turn in range(rounds):
                    fusion = LanguageModelFusion(model, tokenizer, weight=0.3, candidates=2 * BEAMS)
                    chosen = texts[turn * rows : (turn + 1) * rows]
                    tokens = [[1, *tokenizer(text).input_ids] for text in chosen]
                    length = min(map(len, tokens))
                    ids = torch.tensor([row[:length] for row in tokens])
                    first.append(follow(fusion, ids, len(tokenizer)))
                    again.append(follow(fusion, ids, len(tokenizer)))
                lines.append([name, rows, 1e3 * float(np.median(first)), 1e3 * float(np.median(again))])
    return lines


def share_of_generate(checkpoint: str) -> str:
    """Seconds within the fusion over seconds of `generate`, for 8 recordings' worth of noise and 5 beams."""
    from hf_entmax_asr.recognition.checkpoint import load_recogniser

    model, processor = load_recogniser(checkpoint, "cpu")
    demo = draw_splits(0, {"train": SENTENCES})["train"]
    with tempfile.TemporaryDirectory() as folder:
        train_ngram(demo, Path(folder) / "lm.arpa")
        model_of_words = NgramModel(Path(folder) / "lm.arpa")
        fusion = LanguageModelFusion(model_of_words, processor.tokenizer, weight=0.3, candidates=2 * BEAMS)
    spent = [0.0, 0]

    def timed(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        fused = fusion(ids, scores)
        spent[0], spent[1] = spent[0] + time.perf_counter() - start, spent[1] + 1
        return fused

    features = torch.randn(8, 400, model.config.num_mel_bins, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    model.generate(features, num_beams=BEAMS, max_new_tokens=60, logits_processor=[timed])
    total = time.perf_counter() - start
    return (
        f"generate with {checkpoint}, 8 utterances of 4 s, 5 beams: {total:.2f} s, {spent[1]} steps; language model "
        f"{1e3 * spent[0] / spent[1]:.2f} ms a step, {100 * spent[0] / total:.1f} % of the time"
    )


def main() -> None:
    arguments = parse()
    keep_freed_memory()
    for threads in arguments.threads[:1]:  # the language model runs in one thread
        torch.set_num_threads(threads)
        print(machine(), "\n")
        heading = ["tokens, language model", "hypotheses", "first, ms a step", "again, ms"]
        print(table(heading, per_step(arguments.rounds)))
        if arguments.checkpoint:
            print("\n" + share_of_generate(arguments.checkpoint))


if __name__ == "__main__":
    main()
