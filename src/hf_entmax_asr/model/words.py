"""Words and characters of recognised tokens, each with its time and how sure the decoder was of it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

UNREAD = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are not yet a character
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # scripts without spaces: a character is a word
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


@dataclass(frozen=True)
class TimedText:
    """A word or character: seconds from the start of the audio, and the geometric mean of the probabilities that the
    decoder gave its tokens."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Piece:
    """Whole characters, and the tokens `first` to `last` that spell them together."""

    text: str
    first: int
    last: int


def text_mask(tokenizer: Any, ids: Sequence[int]) -> list[bool]:
    """True where a token is of the text: no special token, and before the first end."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    mask, begun, ended = [], False, False
    for token in ids:
        ended = ended or (begun and token == tokenizer.eos_token_id)
        begun = begun or token not in special
        mask.append(token not in special and not ended)
    return mask


def spelled_pieces(tokenizer: Any, ids: Sequence[int]) -> list[Piece]:
    """What tokens spell, in their order; tokens that are bytes of one character make one piece, special tokens none."""
    mask, pieces, before, first = text_mask(tokenizer, ids), list[Piece](), "", None
    said: list[int] = []
    for index, (token, is_text) in enumerate(zip(ids, mask, strict=True)):
        if not is_text:
            continue
        said.append(token)
        first = index if first is None else first
        text = tokenizer.decode(said)
        if text.endswith(UNREAD) or not text.startswith(before):
            continue
        pieces.append(Piece(text[len(before) :], first, index))
        before, first = text, None
    if first is not None:
        pieces.append(Piece(tokenizer.decode(said)[len(before) :], first, len(mask) - 1 - mask[::-1].index(True)))
    return pieces


def timed_texts(
    tokenizer: Any,
    ids: Sequence[int],
    starts: Sequence[float],
    ends: Sequence[float],
    confidences: Sequence[float],
    unit: str = "word",
) -> list[TimedText]:
    """The words ("word") or characters ("char", spaces too) that tokens spell.

    Args:
        tokenizer: of the recogniser.
        ids: U tokens; starts, ends (seconds) and confidences of each.

    Where two neighbours overlap they meet in the middle. The characters of one token share its time evenly.
    """
    texts: list[TimedText] = []
    pieces = spelled_pieces(tokenizer, ids)
    owners = [index for index, piece in enumerate(pieces) for _ in piece.text]
    spoken = "".join(piece.text for piece in pieces)
    if unit == "char":
        for piece in pieces:
            start, end = starts[piece.first], max(starts[piece.first], ends[piece.last])
            width, sure = (end - start) / max(1, len(piece.text)), _mean(confidences[piece.first : piece.last + 1])
            texts += [
                TimedText(letter, start + n * width, start + (n + 1) * width, sure)
                for n, letter in enumerate(piece.text)
            ]
        return _in_order(texts)
    for match in WORD.finditer(spoken):
        first, last = pieces[owners[match.start()]].first, pieces[owners[match.end() - 1]].last
        sure = _mean(confidences[first : last + 1])
        texts.append(TimedText(match.group(), starts[first], max(starts[first], ends[last]), sure))
    return _in_order(texts)


def _mean(probabilities: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(p, 1e-30)) for p in probabilities) / len(probabilities))


def _in_order(texts: list[TimedText]) -> list[TimedText]:
    for index in range(1, len(texts)):
        before, here = texts[index - 1], texts[index]
        if before.end > here.start:
            middle = max(before.start, min((before.end + here.start) / 2, here.end))
            texts[index - 1] = replace(before, end=middle)
            texts[index] = replace(here, start=middle, end=max(middle, here.end))
    return texts


def joined(texts: Sequence[str]) -> str:
    """Texts of consecutive stretches of audio as one, with a space where the script has spaces."""
    whole = ""
    for text in filter(None, (text.strip() for text in texts)):
        glued = whole and re.fullmatch(f"[{UNSPACED}]{{2}}", whole[-1] + text[0])
        whole += text if glued or not whole else f" {text}"
    return whole
