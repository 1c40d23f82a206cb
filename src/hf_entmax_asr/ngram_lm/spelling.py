"""How tokens spell the units of a language model: what has been said, what is begun, and what each next token adds.

Tokens spell in one of two scripts: with the word boundary symbol in front of a word's first piece (the tokenizers of
this package), or in the bytes of UTF-8, each written as one printable character (GPT-2, Whisper).
"""

import codecs
import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_entmax_asr.ngram_lm.scoring import LanguageModelError, NgramModel, State
from hf_entmax_asr.tokenization import WORD_BOUNDARY, writes_bytes

FOREIGN = "\N{REPLACEMENT CHARACTER}"  # what <unk> and bytes that are no text spell: a character that no word has
VALUES_KEPT = 20_000_000  # of all vectors of a cache together

Vector = np.ndarray


@dataclass(frozen=True)
class Hypothesis:
    """What the language model must know of a hypothesis to go on from it.

    Attributes:
        state: before the word (or character) that comes.
        word: what has been spelled of it, in the script of the tokens: a word, or bytes of a character.
        begun: whether there has been a character.
        after_boundary: whether the last token is a word boundary and nothing else.
        ended: whether the last token is the end.
    """

    state: State
    word: str = ""
    begun: bool = False
    after_boundary: bool = False
    ended: bool = False


class Tokens:
    """What each token spells.

    Attributes:
        end: number of the token that ends a text.
        in_bytes: whether the script is UTF-8, a character of the script being a byte (of the same code point).
        silent: whether a token is no text: padding, the start, Whisper's prompt, more than one space.
        bounded: whether a word boundary stands before what a token spells.
        texts: what each spells without that boundary, in the script of the tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.end = int(tokenizer.eos_token_id)
        self.in_bytes = writes_bytes(tokenizer)
        boundary = " " if self.in_bytes else WORD_BOUNDARY
        silent = {tokenizer.pad_token_id, tokenizer.bos_token_id, self.end}
        if self.in_bytes:
            silent.update(tokenizer.added_tokens_decoder)
            names = ["" if index in silent else _bytes_of(name) for index, name in enumerate(names)]
            silent.update(index for index, name in enumerate(names) if _has_space(name.removeprefix(boundary)))
        else:
            names = [FOREIGN if index == tokenizer.unk_token_id else name for index, name in enumerate(names)]
        self.silent = [index in silent for index in range(len(names))]
        spelled = ["" if quiet else name for quiet, name in zip(self.silent, names, strict=True)]
        self.bounded = [name.startswith(boundary) for name in spelled]
        self.texts = [name.removeprefix(boundary) for name in spelled]
        inner = [name for name in spelled if boundary in name[1:]]
        if inner:
            raise LanguageModelError(f"the token {inner[0]!r} spells more than one word; no language model can follow")

    def __len__(self) -> int:
        return len(self.texts)

    def spell(self, text: str) -> str:
        """A text in the script of the tokens."""
        return text.encode().decode("latin-1") if self.in_bytes else text

    def read(self, spelled: str) -> str:
        """The text that stands in the script of the tokens; bytes that are no text become FOREIGN."""
        return spelled.encode("latin-1").decode(errors="replace") if self.in_bytes else spelled

    def characters(self, token: int, begun: bool, unread: str) -> tuple[str, str]:
        """The characters that a token brings behind `unread` bytes, and the bytes then unread.

        Before the first character there is no word boundary.
        """
        boundary = WORD_BOUNDARY if self.bounded[token] and begun else ""
        if not self.in_bytes:
            return boundary + self.texts[token], ""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        before = decoder.decode(unread.encode("latin-1"), final=bool(boundary))
        text = before + boundary + decoder.decode(self.texts[token].encode("latin-1"))
        return text, decoder.getstate()[0].decode("latin-1")


def _bytes_of(name: str) -> str:
    """What a byte-level token spells, bytes as characters of the same code point."""
    return "".join(chr(BYTES[character]) for character in name)


def _has_space(spelled: str) -> bool:
    """Whether there is white space of ASCII in it (a byte above 127 is part of a longer character)."""
    return any(character.isascii() and character.isspace() for character in spelled)


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level tokenizers write for the 256 bytes (GPT-2): a printable byte of Latin-1
    stands for itself, the others follow from code point 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_alphabet()


class _LatestValues:
    """The latest vectors, of `size` numbers, of a function of one hashable argument."""

    def __init__(self, function: Callable[[Any], Any], size: int) -> None:
        self.function, self.values, self.kept = function, OrderedDict[Any, Any](), max(64, VALUES_KEPT // size)

    def __call__(self, key: Any) -> Any:
        if key in self.values:
            self.values.move_to_end(key)
        else:
            self.values[key] = self.function(key)
            if len(self.values) > self.kept:
                self.values.popitem(last=False)
        return self.values[key]


class SpelledCharacters:
    """A character model: each token is the characters that it spells."""

    def __init__(self, model: NgramModel, tokens: Tokens) -> None:
        self.model, self.tokens = model, tokens
        self._known = _LatestValues(lambda key: np.full(len(tokens), np.nan, dtype=np.float32), len(tokens))
        self._lengths = _LatestValues(self._count, len(tokens))

    def _count(self, key: tuple[bool, str]) -> Vector:
        begun, unread = key
        counts = [len(self.tokens.characters(token, begun, unread)[0]) for token in range(len(self.tokens))]
        counts[self.tokens.end] = len(self.tokens.read(unread))
        return np.array(counts, np.float32)

    def step(self, hypothesis: Hypothesis, token: int) -> Hypothesis:
        state = hypothesis.state
        characters, unread = self.tokens.characters(token, hypothesis.begun, hypothesis.word)
        for character in characters:
            state, _ = self.model.advance(state, character)
        begun = hypothesis.begun or bool(characters or unread)
        return replace(hypothesis, state=state, begun=begun, word=unread)

    def lengths(self, hypothesis: Hypothesis) -> Vector:
        return self._lengths((hypothesis.begun, hypothesis.word))

    def logs(self, hypothesis: Hypothesis, wanted: Vector | None = None) -> Vector:
        """log q of each token; those that are not wanted may be NaN."""
        logs = self._known((hypothesis.state, hypothesis.begun, hypothesis.word))
        missing = np.flatnonzero(np.isnan(logs)) if wanted is None else wanted[np.isnan(logs[wanted])]
        for token in missing.tolist():
            logs[token] = self._log(hypothesis, token)
        return logs

    def _log(self, hypothesis: Hypothesis, token: int) -> float:
        state, total, ends = hypothesis.state, 0.0, token == self.tokens.end
        if ends:
            characters = self.tokens.read(hypothesis.word)
        else:
            characters, _ = self.tokens.characters(token, hypothesis.begun, hypothesis.word)
        for character in characters:
            state, score = self.model.advance(state, character)
            total += score
        return total + (self.model.end(state) if ends else 0.0)


class SpelledWords:
    """A word model: tokens spell words, paid for in advance and settled at their ends."""

    def __init__(self, model: NgramModel, tokens: Tokens) -> None:
        if not any(tokens.bounded):
            raise LanguageModelError(
                f"{model.path} is a model of words, but the tokenizer marks no word boundaries ({WORD_BOUNDARY}); "
                "train one with unit='character'"
            )
        self.model, self.tokens = model, tokens
        begun: dict[str, float] = {}
        words = {tokens.spell(word): score for word, score in model.unigrams.items()}
        for word, score in words.items():
            for length in range(len(word) + 1):
                begun[word[:length]] = begun.get(word[:length], 0.0) + math.exp(score)
        self._begun = {prefix: math.log(mass / begun[""]) for prefix, mass in begun.items() if mass > 0}
        self._prefixes = sorted(self._begun)
        self._inner: dict[str, list[int]] = {}
        for token, (text, bounded) in enumerate(zip(tokens.texts, tokens.bounded, strict=True)):
            if text and not bounded:
                self._inner.setdefault(text, []).append(token)
        self._goes_on = np.array([token for same in self._inner.values() for token in same], dtype=np.int64)
        self._bounded = np.array(tokens.bounded)
        self._nothing = np.zeros(len(tokens), dtype=np.float32)
        self._ending = (self._bounded | (np.arange(len(tokens)) == tokens.end)).astype(np.float32)
        self._first = np.array([self._ahead(text) for text in tokens.texts], dtype=np.float32)
        self._following = _LatestValues(self._vector, len(tokens))
        self._ends = _LatestValues(lambda key: model.advance(key[0], tokens.read(key[1])), 1)

    def _ahead(self, prefix: str) -> float:
        """What has been paid for a word that begins so: log of the share of words (by unigram) that do."""
        return self._begun.get(prefix, self.model.unknown)

    def _longer(self, word: str) -> Iterator[str]:
        """Beginnings of the model's words that go on from `word`."""
        for index in range(bisect_left(self._prefixes, word), len(self._prefixes)):
            if not self._prefixes[index].startswith(word):
                return
            yield self._prefixes[index]

    def _vector(self, word: str) -> Vector:
        """What each token without a boundary adds to the payment for a word."""
        ahead, paid = self._nothing.copy(), self._ahead(word)
        ahead[self._goes_on] = self.model.unknown - paid
        for longer in self._longer(word):
            for token in self._inner.get(longer[len(word) :], ()):
                ahead[token] = self._ahead(longer) - paid
        return ahead

    def _settled(self, hypothesis: Hypothesis) -> tuple[State, float]:
        """State behind the word so far, and what is still to pay for it."""
        if not hypothesis.word:
            return hypothesis.state, 0.0
        state, score = self._ends((hypothesis.state, hypothesis.word))
        return state, score - self._ahead(hypothesis.word)

    def step(self, hypothesis: Hypothesis, token: int) -> Hypothesis:
        text = self.tokens.texts[token]
        if not self.tokens.bounded[token]:
            return replace(hypothesis, word=hypothesis.word + text)
        return replace(hypothesis, state=self._settled(hypothesis)[0], word=text)

    def lengths(self, hypothesis: Hypothesis) -> Vector:
        return self._ending if hypothesis.word else self._nothing

    def logs(self, hypothesis: Hypothesis, wanted: Vector | None = None) -> Vector:
        """What each token adds to the payment; all are given, wanted or not."""
        state, due = self._settled(hypothesis)
        logs = np.where(self._bounded, self._first + np.float32(due), self._following(hypothesis.word))
        logs[self.tokens.end] = due + self.model.end(state)
        return logs
