"""CTC beside the decoder: prefix probabilities against all paths, and beam search against all texts."""

import itertools
import math

import pytest
import torch

from hf_entmax_asr.model.ctc_prefix import CtcPrefixScorer
from support.small_models import features, small_model

BLANK, END = 0, 2


def text_of(path) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK)


def probabilities(scores: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Every text and its probability, path by path."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        logs = float(scores[range(len(scores)), list(path)].sum())
        found[text_of(path)] = found.get(text_of(path), 0.0) + math.exp(logs)
    return found


def test_prefix_probabilities_are_sums_over_all_paths():
    logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    logits[..., END] = -1e5  # CTC never says the end
    scores, lengths = logits.log_softmax(-1), torch.tensor([5, 4])
    scorer = CtcPrefixScorer(scores, lengths, 1.0, BLANK, [END], given=1, beams=1)
    for utterance, length in enumerate(lengths.tolist()):
        every = probabilities(scores[utterance, :length])
        for prefix in [(), (1,), (3,), (1, 1), (1, 3), (3, 3, 1)]:
            begins = sum(p for text, p in every.items() if text[: len(prefix)] == prefix)
            state = scorer.states_of(torch.tensor([prefix, prefix], dtype=torch.long))
            assert math.exp(state.psi[utterance]) == pytest.approx(begins, rel=1e-6)
            tokens = torch.tensor([[1, 3, END]] * 2)
            longer = scorer.following(state, tokens, bool(prefix))[utterance].exp().tolist()
            sums = [sum(p for t, p in every.items() if t[: len(prefix) + 1] == (*prefix, c)) for c in (1, 3)]
            assert longer == pytest.approx([*sums, every.get(prefix, 0.0)], rel=1e-6, abs=1e-12)


def test_states_follow_rows_that_are_reordered_repeated_and_dropped():
    generator = torch.Generator().manual_seed(1)
    scores, lengths = torch.randn(2, 9, 6, generator=generator).log_softmax(-1), torch.tensor([9, 6])
    going_on = CtcPrefixScorer(scores, lengths, 0.5, BLANK, [END], given=1, beams=3)
    ids = torch.ones(6, 1, dtype=torch.long)
    for step in range(5):
        decoder = torch.randn(6, 6, generator=generator).log_softmax(-1)
        anew = CtcPrefixScorer(scores, lengths, 0.5, BLANK, [END], given=1, beams=3)
        torch.testing.assert_close(going_on(ids, decoder), anew(ids, decoder))
        if step == 3:  # assisted decoding takes tokens back
            ids = ids[:, :2]
        rows = torch.randint(3, (6,), generator=generator) + torch.tensor([0, 0, 0, 3, 3, 3])
        ids = torch.cat([ids[rows], torch.randint(3, 6, (6, 1), generator=generator)], 1)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_beams_that_hold_everything_find_the_best_text_of_both(weight):
    model = small_model(lively=True, vocab_size=5, ctc_loss_weight=0.3)
    with torch.no_grad():
        model.ctc_head.bias[END] = -50.0
    input_features, mask = features(2, frames=17)
    never = [[0], [1]]
    result = model.generate(
        input_features,
        attention_mask=mask,
        ctc_weight=weight,
        num_beams=40,
        length_penalty=0.0,
        max_new_tokens=4,
        bad_words_ids=never,
        return_dict_in_generate=True,
        output_scores=True,
    )
    with torch.no_grad():
        states = model.get_encoder()(input_features, attention_mask=mask).last_hidden_state
        scores = model.ctc_head(states).log_softmax(-1)
    for row, length in enumerate(model.position_mask(mask).sum(1).tolist()):
        every = probabilities(scores[row, :length])
        totals = {}
        for text in (t for n in range(4) for t in itertools.product((3, 4), repeat=n)):
            tokens = torch.tensor([[1, *text, END]])
            with torch.no_grad():
                logits = model(
                    encoder_outputs=(states[row : row + 1],),
                    attention_mask=mask[row : row + 1],
                    decoder_input_ids=tokens[:, :-1],
                ).logits
            said = float(logits[0].log_softmax(-1).gather(1, tokens[0, 1:, None]).sum())
            if every.get(text):
                totals[text] = (1 - weight) * said + weight * math.log(every[text])
        best = max(totals, key=totals.get)
        found = result.sequences[row].tolist()
        assert tuple(token for token in found[1:] if token not in (BLANK, END)) == best
        assert float(result.sequences_scores[row]) == pytest.approx(totals[best], abs=1e-3)


def test_no_weight_changes_nothing_and_what_cannot_be_is_refused():
    model = small_model(lively=True, ctc_loss_weight=0.3)
    input_features, mask = features(2)
    plain = model.generate(input_features, attention_mask=mask, max_new_tokens=5)
    assert torch.equal(model.generate(input_features, attention_mask=mask, max_new_tokens=5, ctc_weight=0.0), plain)
    model.generation_config.ctc_weight = 0.4
    joint = model.generate(input_features, attention_mask=mask, max_new_tokens=5)
    del model.generation_config.ctc_weight
    assert torch.equal(model.generate(input_features, attention_mask=mask, max_new_tokens=5, ctc_weight=0.4), joint)
    with pytest.raises(ValueError, match=r"ctc_weight = 2.0 must lie in"):
        model.generate(input_features, ctc_weight=2.0)
    with pytest.raises(ValueError, match="not for sampling"):
        model.generate(input_features, ctc_weight=0.4, do_sample=True)
    with pytest.raises(ValueError, match="no CTC head"):
        small_model().generate(input_features, ctc_weight=0.4)
