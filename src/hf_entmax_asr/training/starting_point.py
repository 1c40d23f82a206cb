"""The checkpoint that a training starts from, and what of it the new data changes."""

import logging
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from hf_entmax_asr.error_messages import in_one_line
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.recognition.checkpoint import ids_of, load_recogniser
from hf_entmax_asr.recognition.utterances import Utterances
from hf_entmax_asr.training.recipe import Recipe, RecipeError, model_settings

logger = logging.getLogger(__name__)
DENSER_THAN_TRAINING = 1.5  # tokens a second that a text may have, over the most in training


def load_start(recipe: Recipe) -> tuple[Any, EntmaxAsrProcessor]:
    """Model and processor of the checkpoint that the recipe starts from, with the keys of its model section.

    Raises:
        CheckpointError: there is no such checkpoint.
        RecipeError: weights of another size or other features are asked for.
    """
    start = str(recipe.start_from)
    model, processor = load_recogniser(start, "cpu", any_system=True)
    for key, value in recipe.features.items():
        if key in ("min_seconds", "maximum"):  # how long recordings are, and by which maximum Whisper's are scaled
            setattr(processor.feature_extractor, key, value)
        elif value != (theirs := getattr(processor.feature_extractor, key, None)):
            raise RecipeError(f"features.{key} is {value}, but {start} was trained with {theirs}; leave it out")
    settings = model_settings(recipe).items()
    if absent := [key for key, _ in settings if not hasattr(model.config, key)]:
        raise RecipeError(f"start_from: {start} is a model that knows no model.{absent[0]}; leave it out")
    changes = {key: value for key, value in settings if getattr(model.config, key) != value}
    if not changes:
        return model, processor
    try:
        config = type(model.config).from_dict(model.config.to_dict() | changes)
        changed = type(model).from_pretrained(start, config=config)
    except (RuntimeError, ValueError, StrictDataclassError) as error:
        named = ", ".join(f"model.{key}: {value!r}" for key, value in changes.items())
        raise RecipeError(f"start_from: {start} does not go with {named}: {in_one_line(error)}") from error
    logger.info("differs from %s: %s", start, ", ".join(changes))
    return changed, processor


def token_limit(config: EntmaxAsrConfig, train: Utterances) -> float:
    """The most tokens for each encoder position that a text may have: as the densest one that is trained on, and some
    more."""
    return DENSER_THAN_TRAINING * round(float((train.tokens / config.positions_of(train.frames)).max()), 4)


def fit_to_texts(model: Any, recipe: Recipe, train: Utterances) -> None:
    """Lets the texts of a model that was trained before be as dense as those that it is now trained on; and empty where
    these can be, which Whisper suppresses: it then writes a word where nobody speaks, whatever it has learned."""
    config, settings = model.config, model.generation_config
    config.max_tokens_per_position = max(config.max_tokens_per_position, token_limit(config, train))
    if recipe.augmentation.no_speech_share > 0 or (train.tokens == 1).any():
        ends = ids_of(settings.eos_token_id)
        kept = [token for token in ids_of(settings.begin_suppress_tokens) if token not in ends]
        settings.begin_suppress_tokens = kept or None
