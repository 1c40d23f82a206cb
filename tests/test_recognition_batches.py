"""Utterances cut into batches, in their order and within both bounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_entmax_asr.recognition.batches import cut_batches

LENGTHS = st.lists(st.integers(1, 300), max_size=30)


@given(LENGTHS, st.integers(300, 900), st.integers(1, 6))
def test_batches_keep_the_order_and_none_is_larger_or_smaller_than_need_be(lengths, most_frames, most_utterances):
    frames = np.array(lengths, dtype=int)
    order = np.argsort(frames, kind="stable")
    batches = cut_batches(order, frames, most_frames, most_utterances)
    assert [index for batch in batches for index in batch] == order.tolist()
    for batch, following in itertools.zip_longest(batches, batches[1:]):
        assert len(batch) * frames[list(batch)].max() <= most_frames
        assert len(batch) <= most_utterances
        if following is not None:  # the next utterance would not have fitted
            longest = frames[[*batch, following[0]]].max()
            assert len(batch) == most_utterances or longest * (len(batch) + 1) > most_frames


def test_an_utterance_above_the_batch_size_is_refused():
    with pytest.raises(ValueError, match="300 frames does not fit a batch of 200"):
        cut_batches([1, 0], np.array([300, 20]), 200)
