"""Small language models for the tests, as ARPA files and as dictionaries; a recogniser; what these tests need."""

import importlib.util
import itertools
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_entmax_asr import EntmaxAsrForConditionalGeneration
from hf_entmax_asr.tokenization import SPECIAL_TOKENS
from support.small_models import small_model

NO_KENLM = importlib.util.find_spec("kenlm") is None
NO_TRAINER = not any((shutil.which("lmplz"), shutil.which("tlm"), Path("/usr/lib/irstlm/bin/tlm").exists()))
needs_kenlm = pytest.mark.skipif(NO_KENLM and os.environ.get("CI") != "true", reason="pip install kenlm")
needs_trainer = pytest.mark.skipif(
    (NO_KENLM or NO_TRAINER) and os.environ.get("CI") != "true", reason="apt-get install irstlm; pip install kenlm"
)

SENTENCES = ("ab ba", "abc ab", "a cab", "bad cab ab", "cab", "ab ab dad", "ba ba ba", "abc")
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})

Ngrams = dict[tuple[str, ...], tuple[float, float]]  # (log10 probability, log10 back-off weight)


def make_ngrams(sentences: list[list[str]]) -> Ngrams:
    """A bigram model with arbitrary discounts: 0.7 of a relative frequency, the rest through the unigrams, that give
    <unk> a twentieth."""
    padded = [["<s>", *units, "</s>"] for units in sentences]
    seen = [unit for units in padded for unit in units[1:]]
    unigram = {unit: 0.95 * seen.count(unit) / len(seen) for unit in dict.fromkeys(seen)} | {"<unk>": 0.05}
    pairs = [pair for units in padded for pair in itertools.pairwise(units)]
    ngrams: Ngrams = {}
    for unit in ("<s>", *unigram):
        followers = {second for first, second in pairs if first == unit}
        bigram = {s: 0.7 * pairs.count((unit, s)) / sum(p[0] == unit for p in pairs) for s in followers}
        left = (1 - sum(bigram.values())) / (1 - sum(unigram[s] for s in followers))
        ngrams[unit,] = (math.log10(unigram.get(unit, 1e-5)), math.log10(left))
        ngrams |= {(unit, s): (math.log10(p), 0.0) for s, p in sorted(bigram.items())}
    return ngrams


def write_arpa(path: Path, ngrams: Ngrams, without: tuple[str, ...] = ()) -> Path:
    ngrams = {key: value for key, value in ngrams.items() if not set(key) & set(without)}
    lines = ["", "\\data\\"]
    orders = sorted({len(key) for key in ngrams})
    lines += [f"ngram {n}={sum(len(key) == n for key in ngrams)}" for n in orders]
    for n in orders:
        lines += ["", f"\\{n}-grams:"]
        for key, (score, back_off) in ngrams.items():
            if len(key) == n:
                lines.append(f"{score:.7f}\t{' '.join(key)}" + (f"\t{back_off:.7f}" if n < orders[-1] else ""))
    path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")
    return path


def score_unit(ngrams: Ngrams, before: str, unit: str) -> float:
    """Naive twin of KenLM: natural log p(unit | before), by back-off."""
    before, unit = (u if (u,) in ngrams else "<unk>" for u in (before, unit))
    if (before, unit) in ngrams:
        return ngrams[before, unit][0] * math.log(10)
    return (ngrams[before,][1] + ngrams[unit,][0]) * math.log(10)


def score_units(ngrams: Ngrams, units: list[str], unknown_words: int) -> float:
    """Naive twin of NgramModel.log_probability."""
    total = sum(score_unit(ngrams, a, b) for a, b in itertools.pairwise(["<s>", *units, "</s>"]))
    return total - math.log(unknown_words) * sum((unit,) not in ngrams for unit in units)


def word_ngrams() -> Ngrams:
    return make_ngrams([sentence.split() for sentence in SENTENCES])


def character_ngrams() -> Ngrams:
    return make_ngrams([list(sentence.replace(" ", "▁")) for sentence in SENTENCES])


def recogniser(tokenizer, seed: int = 0) -> EntmaxAsrForConditionalGeneration:
    """A random model that varies its tokens and ends after a few; monotonic heads and α-entmax, as in the paper."""
    model = small_model(
        seed,
        lively=True,
        vocab_size=len(tokenizer),
        encoder_transform="entmax",
        cross_attention="monotonic",
        monotonic_chunk_size=4,
        first_monotonic_layer=1,
    )
    with torch.no_grad():
        never_said = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id]
        model.get_output_embeddings().weight[never_said] = 0.0
        model.get_output_embeddings().weight.mul_(0.4)
    return model


def byte_tokenizer(texts: tuple[str, ...], symbols: str = "é中") -> PreTrainedTokenizerFast:
    """Byte-level pieces as of a converted Whisper, with the special tokens in front and the bytes of a few symbols."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    (word, _), *_ = tokenizer.pre_tokenizer.pre_tokenize_str(symbols)
    trainer = trainers.BpeTrainer(
        vocab_size=28, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=list(word), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL_TOKENS, strict=True)),
        clean_up_tokenization_spaces=False,
    )
