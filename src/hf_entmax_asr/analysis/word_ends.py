"""How far the stops of monotonic heads lie from the true ends of the words, and word times from one chosen head.

The boundaries are those of `model.head_boundaries(...)`: for each token, the encoder position where a head stopped to
write it. In a few heads the boundary of the space after a word (or of the end of the sentence) lies at the end of the
word; others run ahead or trail by a second. So a mean over heads says nothing: choose heads on held-out data
(`best_heads`) and report those very heads on test data (`WordEndErrors.scores`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE_SECONDS = 0.12
ROUNDING = 1e-9  # so that a distance of exactly the tolerance counts as within it

Head = tuple[int, int]  # (layer, head)


@dataclass(frozen=True)
class TokenWord:
    """A word and its tokens: `first` to `last`; `after` is the token that ends it (None if the text was cut off)."""

    text: str
    first: int
    last: int
    after: int | None


@dataclass(frozen=True)
class WordTime:
    """A word and where it was heard, in seconds from the start of the recording."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class HeadScore:
    """Distances between the boundaries of one head and the true word ends.

    Attributes:
        median_absolute_seconds: median of |boundary − word end|.
        median_signed_seconds: median of boundary − word end; above 0 the head trails.
        share_within: share of the words with a distance of at most `tolerance_seconds`.
        words: number of words measured.
    """

    layer: int
    head: int
    median_absolute_seconds: float
    median_signed_seconds: float
    share_within: float
    tolerance_seconds: float
    words: int

    def __str__(self) -> str:
        return (
            f"layer {self.layer} head {self.head}: median distance {1000 * self.median_absolute_seconds:.0f} ms "
            f"(signed {1000 * self.median_signed_seconds:+.0f}), {100 * self.share_within:.0f} % within "
            f"{1000 * self.tolerance_seconds:.0f} ms, {self.words:,} words"
        )


@dataclass(frozen=True)
class WordEndErrors:
    """Distances of a set of utterances; two sets of the same heads can be added.

    Medians need every distance, so memory grows with the words: 8 bytes for each word and head.

    Attributes:
        heads: (layer, head) of each column.
        seconds: (N, number of heads) float64, boundary − true word end, one row per word that was recognised right.
        reference_words: words of the references, recognised or not.
    """

    heads: tuple[Head, ...]
    seconds: Tensor
    reference_words: int

    def __add__(self, other: "WordEndErrors") -> "WordEndErrors":
        if self.heads != other.heads:
            raise ValueError(f"distances of the heads {self.heads} and {other.heads} cannot be added.")
        return WordEndErrors(
            self.heads, torch.cat([self.seconds, other.seconds]), self.reference_words + other.reference_words
        )

    def scores(
        self, heads: Sequence[Head] | None = None, tolerance_seconds: float = TOLERANCE_SECONDS
    ) -> list[HeadScore]:
        """The scores of `heads` (layer, head), in the order given; of all heads by default.

        Raises:
            ValueError: no word was measured, or a head is not among `self.heads`.
        """
        if len(self.seconds) == 0:
            raise ValueError(
                f"none of the {self.reference_words} reference words was recognised right, so there is no distance."
            )
        scores = []
        for layer, head in self.heads if heads is None else heads:
            if (layer, head) not in self.heads:
                raise ValueError(f"(layer, head) = {(layer, head)} was not measured; there are {self.heads}.")
            seconds = self.seconds[:, self.heads.index((layer, head))]
            score = HeadScore(
                layer,
                head,
                # quantile averages the two middle values; Tensor.median would take the lower one.
                median_absolute_seconds=seconds.abs().quantile(0.5).item(),
                median_signed_seconds=seconds.quantile(0.5).item(),
                share_within=(seconds.abs() <= tolerance_seconds + ROUNDING).double().mean().item(),
                tolerance_seconds=tolerance_seconds,
                words=len(seconds),
            )
            scores.append(score)
        return scores


def best_heads(
    held_out: WordEndErrors, count: int = 1, tolerance_seconds: float = TOLERANCE_SECONDS
) -> list[HeadScore]:
    """The `count` heads nearest to the word ends, best first, by median absolute distance, then by share within.

    Choose on data that is not reported: `[(s.layer, s.head) for s in best_heads(validation)]` goes into
    `test.scores(...)`. Picking the best of many heads on the reported data itself would flatter them.
    """
    scores = held_out.scores(tolerance_seconds=tolerance_seconds)
    return sorted(scores, key=lambda score: (score.median_absolute_seconds, -score.share_within))[:count]


def word_end_errors(
    boundaries: Sequence[Tensor],
    tokens: Sequence[Sequence[str]],
    words: Sequence[Sequence[str]],
    word_ends: Sequence[Sequence[float]],
    seconds_per_position: float,
    *,
    at: str = "after",
    first_layer: int = 0,
    word_boundary: str | None = "▁",
) -> WordEndErrors:
    """Distance between the true end of each word and the boundary every head chose for it.

    Only words that were recognised right are measured, found by aligning the words of the tokens with the reference.

    Args:
        boundaries: one (B, H, U) tensor of encoder positions per monotonic layer.
        tokens: B lists of tokens, as recognised (`tokenizer.convert_ids_to_tokens(sequences[b, 1:])`); entry u belongs
            to boundary u. What follows the end of the sentence is ignored.
        words: B lists of reference words.
        word_ends: B lists with the true end of each of them, in seconds.
        seconds_per_position: 0.04 for a hop of 10 ms and two subsampling layers.
        at: "after", the boundary of the token that ends the word (space, or end of sentence; with subwords the first
            piece of the next word), or "last", of the word's last token.
        first_layer: number of the first monotonic decoder layer.
        word_boundary: see `token_words`.

    Raises:
        ValueError: sizes that do not agree; the message names utterance and numbers.
    """
    layers = _checked_boundaries(boundaries, tokens, seconds_per_position, at)
    if not len(tokens) == len(words) == len(word_ends):
        raise ValueError(
            f"tokens, words and word_ends are of {len(tokens)}, {len(words)} and {len(word_ends)} utterances."
        )
    heads = tuple((first_layer + layer, head) for layer, stops in enumerate(layers) for head in range(stops.shape[1]))
    rows = [torch.empty(0, len(heads), dtype=torch.float64)]
    for b, (reference, ends) in enumerate(zip(words, word_ends, strict=True)):
        if len(reference) != len(ends):
            raise ValueError(f"utterance {b} has {len(reference)} words but {len(ends)} word ends.")
        spoken = token_words(tokens[b], word_boundary)
        for true, index in align_words(reference, [word.text for word in spoken]):
            column = _end_token(spoken[index], at)
            if column is not None:
                positions = torch.cat([stops[b, :, column] for stops in layers])  # (layers · H,)
                rows.append((position_seconds(positions, seconds_per_position) - ends[true]).unsqueeze(0))
    return WordEndErrors(heads, torch.cat(rows), sum(map(len, words)))


def word_times(
    boundaries: Sequence[Tensor],
    tokens: Sequence[Sequence[str]],
    head: Head,
    seconds_per_position: float,
    *,
    at: str = "after",
    lag_seconds: float = 0.0,
    first_layer: int = 0,
    word_boundary: str | None = "▁",
) -> list[list[WordTime]]:
    """Word times of B utterances from one chosen head.

    A word starts where the head stopped for its first token, and ends where it stopped for the token that `at` names
    (for its last token where the text was cut off before the word's end).

    Args:
        head: (layer, head), from `best_heads` on held-out data.
        lag_seconds: subtracted from every time, never below 0; the `median_signed_seconds` of that head, if wanted.
        boundaries, tokens, seconds_per_position, at, first_layer, word_boundary: as for `word_end_errors`.

    Raises:
        ValueError: sizes that do not agree, or a head that does not exist.
    """
    layers = _checked_boundaries(boundaries, tokens, seconds_per_position, at)
    layer, index = head[0] - first_layer, head[1]
    if not (0 <= layer < len(layers) and 0 <= index < layers[layer].shape[1]):
        shapes = [stops.shape[1] for stops in layers]
        raise ValueError(f"(layer, head) = {head} does not exist; heads per layer from {first_layer} on: {shapes}.")
    result = []
    for b, spoken in enumerate(tokens):
        times = (position_seconds(layers[layer][b, index], seconds_per_position) - lag_seconds).clamp(min=0).tolist()
        utterance = []
        for word in token_words(spoken, word_boundary):
            end = _end_token(word, at)
            utterance.append(WordTime(word.text, times[word.first], times[word.last if end is None else end]))
        result.append(utterance)
    return result


def token_words(
    tokens: Sequence[str],
    word_boundary: str | None = "▁",
    special_tokens: Sequence[str] = ("<pad>", "<s>"),
    end_of_sentence: str = "</s>",
) -> list[TokenWord]:
    """The words that tokens spell, up to the end of the sentence.

    Args:
        word_boundary: the symbol that stands between words, as a token of its own (characters) or as the beginning
            of a word's first piece (subwords). None: every token is a word (Chinese characters).
        special_tokens: belong to no word and end none.
    """
    words: list[TokenWord] = []
    open_word: list[int] = []

    def close(after: int | None) -> None:
        if open_word:
            text = "".join(tokens[u] for u in open_word)
            if word_boundary is not None:
                text = text.removeprefix(word_boundary)
            words.append(TokenWord(text, open_word[0], open_word[-1], after))
            open_word.clear()

    for u, token in enumerate(tokens):
        if token in special_tokens:
            continue
        begins = word_boundary is None or token.startswith(word_boundary)
        if begins or token == end_of_sentence:
            close(u)
        if token == end_of_sentence:
            return words
        if token != word_boundary:
            open_word.append(u)
    close(None)
    return words


def align_words(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[int, int]]:
    """Index pairs (reference, hypothesis) of equal words, in an alignment with the fewest edits (Levenshtein), and
    among those with the most equal words."""
    edit = min(len(reference), len(hypothesis)) + 1  # more than all equal words, at −1 each, could make up for
    cost = [[edit * j for j in range(len(hypothesis) + 1)]]
    for i, word in enumerate(reference, 1):
        row = [edit * i]
        for j, other in enumerate(hypothesis, 1):
            replaced = cost[i - 1][j - 1] + (-1 if word == other else edit)
            row.append(min(replaced, cost[i - 1][j] + edit, row[j - 1] + edit))
        cost.append(row)
    pairs = []
    i, j = len(reference), len(hypothesis)
    while i and j:
        same = reference[i - 1] == hypothesis[j - 1]
        if cost[i][j] == cost[i - 1][j - 1] + (-1 if same else edit):
            i, j = i - 1, j - 1
            if same:
                pairs.append((i, j))
        elif cost[i][j] == cost[i - 1][j] + edit:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def position_seconds(positions: Tensor, seconds_per_position: float) -> Tensor:
    """Times of encoder positions. Position j stands for the audio from j to j + 1 times `seconds_per_position`; its
    time is the middle of that."""
    return (positions.double() + 0.5) * seconds_per_position


def _end_token(word: TokenWord, at: str) -> int | None:
    return word.after if at == "after" else word.last


def _checked_boundaries(
    boundaries: Sequence[Tensor], tokens: Sequence[Sequence[str]], seconds_per_position: float, at: str
) -> list[Tensor]:
    """The boundaries on the CPU, after a look at every size."""
    if at not in ("after", "last"):
        raise ValueError(f"at = {at!r} is not known. Use 'after' or 'last'.")
    if not seconds_per_position > 0:
        raise ValueError(f"seconds_per_position = {seconds_per_position} must be above 0, for example 0.04.")
    if len(boundaries) == 0:
        raise ValueError("there are no boundaries; they need monotonic layers and monotonic_decoding='hard'.")
    longest = max(map(len, tokens), default=0)
    for layer, stops in enumerate(boundaries):
        if stops.dim() != 3 or stops.shape[0] != len(tokens) or stops.shape[2] < longest:
            raise ValueError(
                f"boundaries[{layer}] has shape {tuple(stops.shape)}; it must be (utterances, heads, tokens) with "
                f"{len(tokens)} utterances and at least {longest} tokens."
            )
    return [stops.detach().cpu() for stops in boundaries]
