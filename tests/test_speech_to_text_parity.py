"""With equal weights and softmax, the stacks of this model are those of transformers' Speech2Text.

The two differ in front: Speech2Text subsamples with 1-D convolutions and counts positions from 1 on. Both are replaced
in Speech2Text by ours, so that all behind them is compared: attention, blocks, masks, output projection, loss,
generation.
"""

import pytest
import torch
from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

from hf_entmax_asr.model.layers import sinusoidal_positions
from support.small_models import SMALL, features, small_model, targets


class OurPositions(torch.nn.Module):
    """Takes the place of Speech2Text's positions; reads the number of positions from the shape of its argument."""

    def forward(self, input_ids, past_key_values_length=0):
        return sinusoidal_positions(torch.arange(input_ids.shape[1]) + past_key_values_length, SMALL["d_model"])


@pytest.fixture(scope="module")
def pair():
    """Our model, and a function that gives Speech2Text with its weights for features with a certain mask."""
    names = ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim")
    names += ("encoder_attention_heads", "decoder_attention_heads", "dropout")
    theirs = Speech2TextForConditionalGeneration(
        Speech2TextConfig(
            **{name: SMALL[name] for name in names},
            input_feat_per_channel=SMALL["num_mel_bins"],
            scale_embedding=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            tie_word_embeddings=False,
        )
    ).eval()
    transforms = {"encoder_transform": "softmax", "decoder_transform": "softmax", "cross_transform": "softmax"}
    ours = small_model(lively=True, cross_attention="full", **transforms)
    weights = {
        name.replace("ffn_layer_norm", "final_layer_norm").replace("ffn.", ""): value
        for name, value in ours.state_dict().items()
        if "subsampling" not in name
    }
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(".conv." in name for name in missing)
    theirs.model.encoder.embed_positions = OurPositions()
    theirs.model.decoder.embed_positions = OurPositions()

    def with_our_front(mask):
        theirs.model.encoder.conv.forward = lambda x: ours.model.encoder.subsampling(x, mask.bool())[0]
        return theirs

    return ours, with_our_front


def test_logits_loss_and_maps(pair):
    ours, with_our_front = pair
    input_features, mask = features()
    labels = targets()
    inputs = {"input_features": input_features, "attention_mask": mask, "labels": labels, "output_attentions": True}
    with torch.no_grad():
        output, expected = ours(**inputs), with_our_front(mask)(**inputs)
    written = labels != -100  # behind the end of a text ours masks the padding, which theirs reads
    torch.testing.assert_close(output.logits[written], expected.logits[written], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss)
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        rows = ours.position_mask(mask) if name == "encoder_attentions" else written
        real = rows[:, None, :, None]
        for maps, theirs in zip(getattr(output, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(torch.where(real, maps, 0), torch.where(real, theirs, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation(pair, options):
    ours, with_our_front = pair
    input_features, mask = features()
    inputs = {"input_features": input_features, "attention_mask": mask, "max_new_tokens": 8, **options}
    assert torch.equal(ours.generate(**inputs), with_our_front(mask).generate(**inputs))
