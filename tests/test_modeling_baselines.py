"""The systems to compare with: each learns, transcribes, is saved and loaded, and does not see padding."""

import itertools
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq

from hf_entmax_asr.model.convolutional import MaskedBatchNorm
from hf_entmax_asr.model.losses import text_targets
from hf_entmax_asr.model.modeling_entmax_asr_baselines import EntmaxAsrBaselineForCTC
from support.small_baselines import SYSTEMS, baseline, baseline_config
from support.small_models import features, targets

TRANSDUCERS = ("rnn_t", "sa_t", "sync_transformer")
SEARCHED = (*TRANSDUCERS, "wav2letter", "jasper")


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    speech, mask = features(frames=45)
    return {"input_features": speech, "attention_mask": mask}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_learns_transcribes_and_comes_back(name, batch, tmp_path):
    model = baseline(name)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(4):
        loss = model.train()(**batch, labels=targets(), use_cache=False).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "entmax_asr_baseline"
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModelForSpeechSeq2Seq"} | (
        {"AutoModelForCTC"} if model.config.head == "ctc" else set()
    )
    for beams in (1, 3):
        found = model.generate(**batch, num_beams=beams, max_new_tokens=7)
        assert torch.equal(loaded.generate(**batch, num_beams=beams, max_new_tokens=7), found)
        if name in SEARCHED:
            for row in found.tolist():
                text = list(itertools.takewhile(lambda token: token != 2, row[1:]))
                assert row[0] == 1  # start, text, end, padding
                assert set(row[len(text) + 2 :]) <= {0}
                assert not {0, 1, 2} & set(text)
                assert len(text) <= 7


@pytest.mark.parametrize("name", SYSTEMS)
def test_padding_changes_nothing(name, batch):
    model = baseline(name)
    lengths = batch["attention_mask"].sum(1).tolist()
    states = model.get_encoder()(**batch)[0]
    positions = model.position_mask(batch["attention_mask"])
    labels, summed = targets(), 0.0
    for row, length in enumerate(lengths):
        alone = {"input_features": batch["input_features"][row : row + 1, :length]}
        torch.testing.assert_close(
            model.get_encoder()(**alone)[0][0], states[row][positions[row]], atol=1e-5, rtol=1e-4
        )
        assert states[row][positions[row]].shape[0] == model.config.positions_of(length)
        of_row = labels[row : row + 1, : int((labels[row] != -100).sum())]
        summed += model(**alone, labels=of_row, use_cache=False).loss.item() * of_row.shape[1]
    together = model(**batch, labels=labels, use_cache=False).loss.item() * int((labels != -100).sum())
    assert summed == pytest.approx(together, rel=1e-5)
    noise = batch["input_features"] + 9.0 * (batch["attention_mask"] == 0)[..., None]
    for beams in (1, 2):
        options = {"num_beams": beams, "max_new_tokens": 5}
        expected = model.generate(**batch, **options)
        assert torch.equal(model.generate(noise, attention_mask=batch["attention_mask"], **options)[1:], expected[1:])


@pytest.mark.parametrize("name", ["combiner", "las", "wav2letter", "rnn_t", "sync_transformer"])
def test_checkpointing_changes_no_gradient_and_bfloat16_works(name, batch):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = baseline(name, scheduled_sampling=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch, labels=targets(), use_cache=False).loss.backward()
        return [p.grad for p in model.parameters()]

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    half = baseline(name).to(torch.bfloat16)
    assert half(**batch, labels=targets(), use_cache=False).loss.isfinite()
    half.generate(**batch, num_beams=2, max_new_tokens=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        baseline(name).train()(**batch, labels=targets(), use_cache=False).loss.backward()


def test_the_speller_with_a_cache_is_the_speller_without(batch):
    model = baseline("las")
    tokens = torch.randint(3, 24, (3, 6))
    states = model.get_encoder()(**batch)
    whole = model(encoder_outputs=states, attention_mask=batch["attention_mask"], decoder_input_ids=tokens)
    cache, steps = None, []
    for step in range(6):
        out = model(
            encoder_outputs=states,
            attention_mask=batch["attention_mask"],
            decoder_input_ids=tokens[:, step : step + 1],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole.logits, atol=1e-5, rtol=1e-4)
    options = {"num_beams": 3, "max_new_tokens": 6}
    cached, anew = (model.generate(**batch, use_cache=cached, **options) for cached in (True, False))
    assert torch.equal(cached, anew)


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_what_a_search_carries_is_what_training_sees(name, batch):
    """Logits of single hypotheses, token after token, are those of whole texts."""
    model = baseline(name)
    texts, counts = text_targets(model.config, targets())
    sources, steps = model.head.sources(model.get_encoder()(**batch)[0], model.position_mask(batch["attention_mask"]))
    read = model.head.read(torch.cat([torch.ones(3, 1, dtype=torch.long), texts], 1))
    whole = model.head.logits(sources, read)  # (B, T, W, V)
    states = model.head.extend([None] * 3, [None] * 3)
    for u in range(int(counts.max()) + 1):
        found = model.head.next_logits(sources[:, 0], states)
        torch.testing.assert_close(found, whole[:, 0, u], atol=1e-5, rtol=1e-4)
        if u < texts.shape[1]:
            states = model.head.extend(states, texts[:, u].tolist())
    assert steps.tolist() == [
        {"sync_transformer": -(-max(n - 1, 3) // 3)}.get(name, n)
        for n in model.config.positions_of(batch["attention_mask"].sum(1)).tolist()
    ]


def test_sat_without_its_path_loss_is_a_plain_transducer_and_hears_no_further_than_its_windows(batch):
    plain, with_path = (baseline("sa_t", path_loss_weight=weight) for weight in (0.0, 1.0))
    losses = [model(**batch, labels=targets()).loss.item() for model in (plain, with_path)]
    assert losses[1] > 2 * losses[0]  # the likeliest alignment is less likely than all of them
    speech = batch["input_features"][:1]
    later = speech.clone()
    later[:, 24:] += 1.0  # positions from 6 on, and by the convolutions 5; two layers look one position ahead each
    states, changed = (plain.get_encoder()(x)[0] for x in (speech, later))
    assert torch.equal(states[:, :3], changed[:, :3])
    assert not torch.allclose(states[:, 4], changed[:, 4])


def test_chunks_hold_every_state_and_share_some_with_the_one_before():
    head = baseline("sync_transformer").head  # chunks of 4 that share 1
    for positions in range(1, 15):
        numbers = torch.arange(1.0, positions + 1)[None, :, None].expand(1, -1, 16)
        mask = torch.ones(1, positions, dtype=torch.bool)
        chunks, steps = head.sources(numbers, mask)  # (1, T, 4, 17)
        assert steps.item() == chunks.shape[1] == 1 + -(-max(positions - 4, 0) // 3)
        held = chunks[0, ..., 0]
        assert sorted({int(n) for n in held.flatten() if n}) == list(range(1, positions + 1))
        assert torch.equal(chunks[0, ..., -1] > 0, held > 0)
        assert torch.equal(held[1:, 0], held[:-1, -1])


def test_batch_norm_counts_real_steps_alone():
    torch.manual_seed(0)
    norm = MaskedBatchNorm(3)
    torch.nn.init.ones_(norm.weight)
    torch.nn.init.zeros_(norm.bias)
    x, mask = torch.randn(2, 3, 5), torch.tensor([[True] * 5, [True, True, False, False, False]])
    real = torch.cat([x[0], x[1, :, :2]], 1)  # (X, 7)
    theirs = torch.nn.BatchNorm1d(3)
    expected = theirs(real.T[:, :, None])[..., 0].T
    found = norm(x + 100 * ~mask[:, None], mask)
    torch.testing.assert_close(torch.cat([found[0], found[1, :, :2]], 1), expected)
    torch.testing.assert_close(norm.running_mean, theirs.running_mean)
    torch.testing.assert_close(norm.running_var, theirs.running_var)
    torch.testing.assert_close(norm.eval()(x, mask), theirs.eval()(x))


def test_ctc_of_too_short_audio_adds_nothing(batch):
    model = baseline("wav2letter", conv_stride=16)  # 3 positions for 5 tokens
    loss = model(**batch, labels=targets()).loss
    assert loss.item() == 0.0
    loss.backward()
    assert all((p.grad == 0).all() for p in model.parameters())


def test_texts_without_their_ends():
    labels = torch.tensor([[5, 6, 7, 2], [2, -100, -100, -100], [8, 2, -100, -100]])
    texts, counts = text_targets(baseline_config("rnn_t"), labels)
    assert texts.tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert counts.tolist() == [3, 0, 1]


def test_a_ctc_model_is_one_of_its_auto_class_and_no_other_is(tmp_path, batch):
    baseline("jasper").save_pretrained(tmp_path / "ctc")
    assert isinstance(AutoModelForCTC.from_pretrained(tmp_path / "ctc"), EntmaxAsrBaselineForCTC)
    baseline("rnn_t").save_pretrained(tmp_path / "rnn_t")
    with pytest.raises(ValueError, match="head = 'transducer' is of EntmaxAsrBaselineForTransducer, not of"):
        AutoModelForCTC.from_pretrained(tmp_path / "rnn_t")
    assert AutoConfig.from_pretrained(tmp_path / "rnn_t").predictor == "lstm"
    made = AutoModelForSpeechSeq2Seq.from_config(baseline_config("sync_transformer"))
    assert type(made).__name__ == "EntmaxAsrBaselineForTransducer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "rnn"}, "head = 'rnn' is not known. Use one of: attention"),
        ({"head": "ctc", "cross_attention": "monotonic"}, "is of head = 'attention', not of 'ctc'"),
        ({"head": "transducer", "ctc_loss_weight": 0.3}, "ctc_loss_weight = 0.3 is of the attention heads"),
        ({"encoder_type": "blstm", "encoder_chunk_size": 4}, "are of encoder_type 'transformer', not 'blstm'"),
        ({"encoder_window": [3]}, r"encoder_window = \[3\] must be two numbers"),
        (
            {"decoder_chunk_size": 3, "decoder_chunk_overlap": 3},
            "decoder_chunk_overlap = 3 must be at least 0 and below",
        ),
        ({"encoder_type": "glu_conv", "conv_channels": [3], "conv_kernels": [1]}, "must be even"),
        ({"encoder_type": "jasper", "conv_channels": [3]}, "must be of one length"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(StrictDataclassError, match=message):
        baseline_config("transformer", **options)


def test_what_generate_cannot_do_is_refused(batch):
    model = baseline("rnn_t")
    for options, message in (
        ({"do_sample": True}, "do_sample = True: a transducer model searches greedily"),
        ({"num_return_sequences": 2, "num_beams": 2}, "num_return_sequences = 2"),
        ({"language": "en"}, "language means nothing to a transducer model"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**batch, **options)
    model.generation_config.ctc_weight = 0.5
    with pytest.raises(ValueError, match="of a transducer model it is 0; leave it out"):
        model.generate(**batch)
    model.generation_config.ctc_weight = None
    result = model.generate(**batch, num_beams=2, return_dict_in_generate=True)
    assert result.sequences_scores.shape == (3,)
