"""Calibration: each head reads what it read, within the bound, with as many exact zeros as that allows."""

import pytest
import torch

from hf_entmax_asr import EntmaxAsrForConditionalGeneration
from hf_entmax_asr.pretrained import sparsify
from support.small_models import features, small_model, targets


def batches(count: int = 2):
    for seed in range(count):
        input_features, mask = features(batch=2, frames=80, seed=seed)
        yield {"input_features": input_features, "attention_mask": mask, "labels": targets(batch=2)}


def peaked_model(**options):
    """A model whose heads look at something."""
    model = small_model(lively=True, encoder_transform="softmax", decoder_transform="softmax", **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def calibrated():
    model = peaked_model(cross_attention="full")
    return model, *sparsify(model, batches(), max_relative_error=0.1)


def test_every_head_is_chosen_within_the_bound(calibrated):
    model, sparse, heads = calibrated
    modules = [f"encoder.layers.{i}.self_attn" for i in range(2)]
    modules += [f"decoder.layers.{i}.{name}" for i in range(2) for name in ("self_attn", "encoder_attn")]
    counts = {name: model.get_submodule(f"model.{name}").num_heads for name in modules}
    assert sorted((h.module, h.head) for h in heads) == sorted((n, i) for n, c in counts.items() for i in range(c))
    assert all(head.relative_error <= 0.1 for head in heads)
    assert sum(head.zero_share for head in heads) / len(heads) > 0.2
    for head in heads:
        transform = sparse.get_submodule(f"model.{head.module}.transform")
        assert transform.alpha()[head.head].item() == pytest.approx(head.alpha, abs=1e-4)
        assert transform.logit_scale()[head.head].item() == pytest.approx(head.scale, abs=1e-4)


def test_what_a_head_reads_and_its_zeros_are_those_of_the_model(calibrated):
    """Measured again, on the first encoder layer, from the maps that the two models return."""
    model, sparse, heads = calibrated
    error = norm = zeros = allowed = 0
    for batch in batches():
        inputs = {name: batch[name] for name in ("input_features", "attention_mask")}
        real = model.position_mask(batch["attention_mask"])
        with torch.no_grad():
            before, after = (
                each.model.encoder(**inputs, output_attentions=True).attentions[0] for each in (model, sparse)
            )
            layer = model.model.encoder.layers[0]
            states = model.model.encoder(**inputs, output_hidden_states=True).hidden_states[0]
            value = layer.self_attn.heads_of(layer.self_attn.v_proj, layer.self_attn_layer_norm(states))
        rows = real[:, None, :, None]
        error += (((after - before) @ value) * rows).square().sum((0, 2, 3))
        norm += ((before @ value) * rows).square().sum((0, 2, 3))
        both = rows & real[:, None, None, :]
        zeros += ((after == 0) & both).sum((0, 2, 3))
        allowed += both.sum()
    for head in heads:
        if head.module == "encoder.layers.0.self_attn":
            assert (error / norm).sqrt()[head.head].item() == pytest.approx(head.relative_error, rel=1e-3)
            assert (zeros / allowed)[head.head].item() == pytest.approx(head.zero_share, abs=1e-3)


def test_a_looser_bound_gives_more_zeros_and_only_what_is_asked_for_changes():
    model = peaked_model()
    shares = []
    for bound in (0.05, 0.3):
        sparse, heads = sparsify(model, batches(), max_relative_error=bound, kinds=("encoder",))
        shares.append(sum(head.zero_share for head in heads))
    assert shares[1] > shares[0]
    assert {head.module.split(".")[0] for head in heads} == {"encoder"}
    assert sparse.config.decoder_transform == "softmax"
    own = dict(model.named_parameters())
    assert all(torch.equal(p, own[name]) for name, p in sparse.named_parameters() if name in own)


def test_a_bound_that_nothing_meets_leaves_softmax():
    model = peaked_model()
    sparse, heads = sparsify(model, batches(1), max_relative_error=1e-9)
    assert all(head.alpha <= 1.05 for head in heads)
    batch = next(batches(1))
    with torch.no_grad():
        torch.testing.assert_close(sparse(**batch).logits, model(**batch).logits, atol=0.05, rtol=0.05)


def test_the_scale_is_learned_saved_and_the_same_with_and_without_maps(calibrated, tmp_path):
    _, sparse, _ = calibrated
    batch = next(batches(1))
    fused, with_maps = sparse(**batch), sparse(**batch, output_attentions=True)
    torch.testing.assert_close(fused.logits, with_maps.logits, atol=1e-3, rtol=1e-3)
    fused.loss.backward()
    scale = sparse.model.encoder.layers[0].self_attn.transform.log_scale
    assert scale.grad.abs().sum() > 0
    sparse.save_pretrained(tmp_path)
    again = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, sparse(**batch).logits)


def test_refused():
    model = peaked_model()
    with pytest.raises(ValueError, match="max_relative_error = 0 must be above 0"):
        sparsify(model, batches(), max_relative_error=0)
    with pytest.raises(ValueError, match="kinds: 'audio' is not known"):
        sparsify(model, batches(), kinds=("audio",))
    with pytest.raises(ValueError, match="nothing to calibrate: no clips"):
        sparsify(model, [])


def test_program(tmp_path, call):
    from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrProcessor
    from hf_entmax_asr.tokenization import train_character_tokenizer
    from support.tones import write_splits

    data = write_splits(tmp_path / "tones", train=3)
    tokenizer = train_character_tokenizer(["abc def"])
    peaked_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "dense")
    EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(feature_size=12), tokenizer).save_pretrained(tmp_path / "dense")
    status, printed, said = call("sparsify", tmp_path / "dense", data, "--output", tmp_path / "sparse", "--clips", 2)
    assert (status, said) == (0, "")
    assert "encoder.layers.1.self_attn, head 1" in printed
    assert "mean, encoder" in printed
    assert (tmp_path / "sparse" / "model.safetensors").is_file()
    status, _, said = call("sparsify", tmp_path / "dense", data, "--output", tmp_path / "sparse")
    assert (status, said) == (1, f"sparsify.py: {tmp_path / 'sparse'} exists; name another folder\n")
