"""Transducer beams against every text there is, and with something else to say about the texts."""

import itertools

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from hf_entmax_asr.model.transducer_lattice import emissions, transducer_log_probability
from hf_entmax_asr.model.transducer_search import Symbols, TextScorer, transducer_beams, transducer_greedy
from hf_entmax_asr.ngram_lm import FusedModel, LanguageModelFusion, NgramModel
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.language_models import SENTENCES, needs_kenlm, word_ngrams, write_arpa
from support.small_baselines import baseline
from support.small_models import features

SYMBOLS = Symbols(blank=0, never=[1, 2], start=1, end=2)
TOKENS = (3, 4)
EVERYTHING = 100  # beams


class Bigrams(LogitsProcessor):
    """A language model of two tokens and an end."""

    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).log_softmax(1)

    def __call__(self, input_ids, scores):
        return scores + self.scores[input_ids[:, -1]][:, : scores.shape[1]]

    def of(self, text) -> float:
        return sum(float(self.scores[a, b]) for a, b in itertools.pairwise((1, *text, 2)))


def scorers():
    return [(None, lambda text: 0.0), (LogitsProcessorList([Bigrams()]), Bigrams().of)]


def texts(longest: int):
    return [text for length in range(longest + 1) for text in itertools.product(TOKENS, repeat=length)]


@needs_kenlm
@pytest.mark.parametrize("name", ["wav2letter", "rnn_t"])
@torch.no_grad()
def test_generate_fuses_an_ngram_model(name, tmp_path):
    """With a beam for every text, a score is that of the text by the training loss and by the language model."""
    tokenizer = train_character_tokenizer(SENTENCES)
    model = baseline(name, vocab_size=len(tokenizer))
    fusion = LanguageModelFusion(NgramModel(write_arpa(tmp_path / "w.arpa", word_ngrams())), tokenizer, weight=0.5)
    speech, mask = features(batch=2, frames=20)
    options = {"num_beams": EVERYTHING, "max_new_tokens": 2, "return_dict_in_generate": True}
    fused = FusedModel(model, fusion).generate(speech, attention_mask=mask, **options)
    for number, (row, score) in enumerate(zip(fused.sequences.tolist(), fused.sequences_scores.tolist(), strict=True)):
        labels = torch.tensor([row[1 : row.index(2) + 1]])
        heard = {"input_features": speech[number : number + 1], "attention_mask": mask[number : number + 1]}
        loss = model(**heard, labels=labels).loss.item() * labels.shape[1]
        expected = fusion.score(tokenizer.decode(labels[0], skip_special_tokens=True)) - loss
        assert score == pytest.approx(expected, abs=1e-3)


@pytest.fixture(scope="module")
def heads():
    """By predictor: a head of 5 symbols, and 4 steps of one utterance."""
    made = {}
    for name in ("rnn_t", "sa_t", "sync_transformer"):
        model = baseline(name, vocab_size=5)
        with torch.no_grad():
            model.head.lm_head.weight.mul_(3)
        torch.manual_seed(1)
        sources, _ = model.head.sources(torch.randn(1, 4 if name != "sync_transformer" else 13, 16), None)
        made[name] = model.head, sources
    return made


@pytest.mark.parametrize("name", ["rnn_t", "sa_t", "sync_transformer"])
@pytest.mark.parametrize(("processors", "language"), scorers(), ids=["alone", "with a language model"])
@torch.no_grad()
def test_transducer_beams_are_an_enumeration(name, processors, language, heads):
    head, sources = heads[name]
    expected = {}
    for text in texts(3):
        labels = torch.tensor([text], dtype=torch.long)
        logits = head.logits(sources, head.read(torch.tensor([[1, *text]])))
        scores = emissions(logits, labels, 0)
        sizes = torch.tensor([sources.shape[1]]), torch.tensor([len(text)])
        expected[text] = transducer_log_probability(*scores, *sizes).item() + language(text)
    found = dict(transducer_beams(head, sources[0], 3, EVERYTHING, 3, TextScorer(processors, SYMBOLS)))
    assert found == {text: pytest.approx(score, abs=1e-3) for text, score in expected.items()}
    best, score = transducer_beams(head, sources[0], 3, 6, 3, TextScorer(processors, SYMBOLS))[0]
    assert best == max(expected, key=expected.get)
    assert score <= expected[best] + 1e-3


@pytest.mark.parametrize("name", ["rnn_t", "sa_t", "sync_transformer"])
@torch.no_grad()
def test_transducer_greedy_is_its_definition(name, heads):
    """Also in a batch, with a bound on the tokens of one step and of the text."""
    head, sources = heads[name]
    for most, limit in ((2, 9), (1, 9), (3, 2)):
        text = []
        for source in sources[0]:
            for _ in range(most):
                states = head.start()
                for token in text:
                    (states,) = head.extend([states], [token])
                scores = head.next_logits(source[None], [states])[0]
                scores[[1, 2]] = -torch.inf
                if len(text) == limit or scores.argmax() == 0:
                    break
                text.append(int(scores.argmax()))
        batch = torch.cat([sources, sources])
        steps = [sources.shape[1], 1]
        whole, short = transducer_greedy(head, batch, steps, [limit, limit], SYMBOLS, most)
        assert whole == tuple(text)
        assert whole[: len(short)] == short
        assert len(short) <= most
