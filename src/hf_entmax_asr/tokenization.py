"""Training tokenizers from transcripts: characters or byte-pair pieces, saved as tokenizer.json, loaded without code.

Every tokenizer has `SPECIAL_TOKENS` as its first ids and appends ``</s>`` to a text. Spaces between words become the
visible `WORD_BOUNDARY`, a run of white space counting as one space. A character that the training texts do not hold
becomes ``<unk>``. ``decode(encode(text), skip_special_tokens=True)`` gives the text back.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
PAD, BOS, EOS, UNK = SPECIAL_TOKENS
WORD_BOUNDARY = "▁"
SMALLEST_PAIR_COUNT = 2  # a pair of pieces that is seen once is not worth a token


def writes_bytes(tokenizer: Any) -> bool:
    """Whether tokens stand for bytes, each as one printable character (GPT-2, Whisper): Ġ is a space there."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


def train_tokenizer(
    kind: Literal["character", "bpe"],
    texts: Iterable[str],
    *,
    vocab_size: int = 5000,
    word_boundary: bool = True,
    nfkc: bool = False,
    symbols: Sequence[str] = (),
    doubled_letters: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer of either kind; `vocab_size` is for pieces alone, what stands behind `nfkc` for characters alone, as
    `word_boundary` is.

    Raises what `train_character_tokenizer` and `train_bpe_tokenizer` do.
    """
    if kind == "bpe":
        return train_bpe_tokenizer(texts, vocab_size, nfkc=nfkc)
    return train_character_tokenizer(
        texts, word_boundary=word_boundary, nfkc=nfkc, symbols=symbols, doubled_letters=doubled_letters
    )


def train_character_tokenizer(
    texts: Iterable[str],
    *,
    word_boundary: bool = True,
    nfkc: bool = False,
    symbols: Sequence[str] = (),
    doubled_letters: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each character of the texts, in the order of their code points.

    Args:
        texts: transcripts.
        word_boundary: whether words are separated by spaces. If not (Chinese), white space is dropped.
        nfkc: whether to apply Unicode NFKC first, which for example turns full-width Latin letters into ASCII.
        symbols: strings that are one token each wherever they stand, as WSJ's ``<NOISE>``; the last ids but for
            those of doubled letters.
        doubled_letters: whether a doubled letter of the texts, as the "ll" of "hello", is one token: a decoder that
            writes characters easily loses count of equal ones. Collobert et al. 2016 (arXiv 1609.03193) have a symbol
            for repetition to the same end.

    Raises:
        TypeError: ``texts`` is one string, or holds something else than strings; so for ``symbols``.
        ValueError: no text holds a character, or one holds a special token or the word boundary symbol; or a symbol is
            shorter than two characters, or would not survive normalisation.
    """
    normalizer = _normalizer(word_boundary, nfkc)
    _check_symbols(symbols, normalizer)
    any_symbol = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
    checked = _checked(texts)
    spelled = [re.sub(any_symbol, "", text) for text in checked] if symbols else checked
    alphabet = _alphabet(spelled, normalizer) | ({WORD_BOUNDARY} if word_boundary else set())
    if doubled_letters:
        symbols = [*symbols, *_doubled_letters(spelled, normalizer)]
        any_symbol = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *sorted(alphabet), *symbols])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(rf"{any_symbol}|[\s\S]" if symbols else r"[\s\S]"), behavior="isolated"
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(WORD_BOUNDARY, " "), decoders.Fuse()])
    return _as_transformers(tokenizer)


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int, *, nfkc: bool = False) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer (Sennrich et al. 2016, arXiv 1508.07909) over words that begin with the boundary symbol.

    Args:
        texts: transcripts whose words are separated by spaces.
        vocab_size: the number of tokens, special ones included. Texts with too little repetition give fewer, with a
            warning.
        nfkc: whether to apply Unicode NFKC first.

    Raises:
        TypeError: ``texts`` is one string, or holds something else than strings.
        ValueError: ``vocab_size`` is too small for the special tokens and the characters (the message names the
            minimum); no text holds a character, or one holds a special token or the word boundary symbol.
    """
    texts = _checked(texts)
    normalizer = _normalizer(word_boundary=True, nfkc=nfkc)
    alphabet = _alphabet(texts, normalizer) | {WORD_BOUNDARY}
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the {len(SPECIAL_TOKENS)} special tokens and the {len(alphabet)} "
            f"characters of the texts need at least {smallest}."
        )
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD_BOUNDARY, prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(WORD_BOUNDARY, prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        min_frequency=SMALLEST_PAIR_COUNT,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    if tokenizer.get_vocab_size() < vocab_size:
        logger.warning(
            f"The texts give {tokenizer.get_vocab_size()} tokens, not {vocab_size}: no pair of pieces is left that "
            f"occurs {SMALLEST_PAIR_COUNT} times. Set the model's vocab_size to len(tokenizer)."
        )
    return _as_transformers(tokenizer)


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts is one string; give a list of strings.")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"Text {index} is {text!r}, not a string.")
        for reserved in (*SPECIAL_TOKENS, WORD_BOUNDARY):
            if reserved in text:
                raise ValueError(f"Text {index} holds {reserved!r}, which is kept for the tokenizer: {text!r}.")
    return texts


def _check_symbols(symbols: Sequence[str], normalizer: normalizers.Normalizer) -> None:
    if isinstance(symbols, str) or not all(isinstance(symbol, str) for symbol in symbols):
        raise TypeError(f"symbols is {symbols!r}; give a list of strings.")
    for symbol in symbols:
        if len(symbol) < 2 or normalizer.normalize_str(symbol) != symbol:
            raise ValueError(
                f"The symbol {symbol!r} must have two characters or more, and no space or other character "
                "that normalisation changes."
            )
        if symbol in SPECIAL_TOKENS or list(symbols).count(symbol) > 1:
            raise ValueError(f"The symbol {symbol!r} is a token already.")


def _normalizer(word_boundary: bool, nfkc: bool) -> normalizers.Normalizer:
    spaces = normalizers.Replace(Regex(r"\s+"), WORD_BOUNDARY if word_boundary else "")
    return normalizers.Sequence([normalizers.NFKC(), spaces] if nfkc else [spaces])


def _alphabet(texts: list[str], normalizer: normalizers.Normalizer) -> set[str]:
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(normalizer.normalize_str(text))
    if not alphabet - {WORD_BOUNDARY}:
        raise ValueError(f"There is nothing to learn from: the {len(texts)} texts hold no characters.")
    return alphabet


def _doubled_letters(texts: list[str], normalizer: normalizers.Normalizer) -> list[str]:
    """Of alphabets with capitals: a doubled Chinese character is two syllables."""
    found = {m.group() for text in texts for m in re.finditer(r"([^\W\d_])\1", normalizer.normalize_str(text))}
    return sorted(pair for pair in found if pair.lower() != pair.upper())


def _as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A $B:1 {EOS}:1", special_tokens=[(EOS, SPECIAL_TOKENS.index(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
