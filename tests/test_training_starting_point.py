"""What new data changes of a checkpoint that a training starts from."""

import numpy as np
import pytest
from transformers import GenerationConfig

from hf_entmax_asr.training.starting_point import fit_to_texts
from support.small_models import small_model
from support.tones import tiny_recipe, write_splits


class Texts:
    """As much of training utterances as is looked at: tokens, the end among them, and frames."""

    def __init__(self, *tokens: int) -> None:
        self.tokens, self.frames = np.array(tokens), np.full(len(tokens), 40)  # 10 positions


@pytest.mark.parametrize(
    ("tokens", "no_speech_share", "suppressed"), [((9, 5), 0.0, [3, 2]), ((9, 5), 0.1, [3]), ((9, 1), 0.0, [3])]
)
def test_texts_can_be_empty_where_those_of_training_are(tmp_path, tokens, no_speech_share, suppressed):
    recipe = tiny_recipe(write_splits(tmp_path, train=2, validation=1))
    recipe.augmentation.no_speech_share = no_speech_share
    model = small_model(max_tokens_per_position=0.5)
    model.generation_config = GenerationConfig(eos_token_id=2, begin_suppress_tokens=[3, 2])
    fit_to_texts(model, recipe, Texts(*tokens))
    assert model.generation_config.begin_suppress_tokens == suppressed
    assert model.config.max_tokens_per_position == pytest.approx(1.35)  # half as dense again
    fit_to_texts(model, recipe, Texts(2, 3))
    assert model.config.max_tokens_per_position == pytest.approx(1.35)


def test_nothing_else_needs_to_be_suppressed(tmp_path):
    recipe = tiny_recipe(write_splits(tmp_path, train=2, validation=1))
    recipe.augmentation.no_speech_share = 0.1
    model = small_model()
    for before in ([2], None):
        model.generation_config = GenerationConfig(eos_token_id=[2], begin_suppress_tokens=before)
        fit_to_texts(model, recipe, Texts(4))
        assert model.generation_config.begin_suppress_tokens is None
