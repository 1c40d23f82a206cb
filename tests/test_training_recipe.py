"""Recipes: what is read, what is refused, and with which words."""

from pathlib import Path

import pytest

from hf_entmax_asr.training import RecipeError, load_recipe
from hf_entmax_asr.training.recipe import recipe_from_dict, recipe_to_dict

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))])
def test_the_recipes_of_the_repository_are_valid(name):
    recipe = load_recipe(ROOT / "scripts" / "recipes" / name)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


def test_the_documented_recipe_names_every_key():
    import yaml

    tree = yaml.safe_load((ROOT / "scripts" / "recipes" / "paper_base.yaml").read_text(encoding="utf-8"))
    every = recipe_to_dict(load_recipe(ROOT / "scripts" / "recipes" / "paper_base.yaml"))
    assert tree.keys() == every.keys()
    for section in every.keys() - {"start_from", "seed", "model", "features"}:
        assert tree[section].keys() == every[section].keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "unknown recipe key 'optimizer.learning_rate'; did you mean 'peak_learning"),
        ("optimiser.eps=1", "unknown recipe key 'optimiser'; did you mean 'optimizer'"),
        ("model.d_modl=8", "unknown recipe key 'model.d_modl'; did you mean 'd_model'"),
        ("model.d_model=7", "multiple of encoder_attention_heads"),
        ("model.vocab_size=7", "it follows from the tokenizer"),
        ("features.cmvn=speaker", "speaker"),
        ("schedule.max_steps=soon", "schedule.max_steps is 'soon'; it must be of type int"),
        ("schedule.max_steps=null", "the recipe has no end"),
        ("data.bad_utterances=keep", "must be one of 'refuse', 'drop'"),
        ("batching.frames_per_batch=5", "batching.frames_per_batch is 5; it must be at least 100"),
        ("optimizer.betas=[0.9]", "a list of 2 numbers"),
        ("optimizer.peak_learning_rate=0", "must be above 0"),
        ("optimizer.ema_decay=1", "optimizer.ema_decay is 1.0; it must be between 0 and"),
        ("evaluation.analyze_every_steps=0", "evaluation.analyze_every_steps is 0; it must be at least 1"),
        ("evaluation.analyze_utterances=0", "evaluation.analyze_utterances is 0; it must be at least 1"),
        ("evaluation.tensorboard=1", "evaluation.tensorboard is 1; it must be of type bool"),
        ("model", "--set takes section.key=value"),
        ("augmentation.speeds=[]", "augmentation.speeds is []; give one or more"),
        ("augmentation.speeds=[0.9, 3]", "each between 0.5 and 2"),
        ("augmentation.speeds=1.1", "augmentation.speeds is 1.1; it must be a list"),
        ("augmentation.noise_share=2", "augmentation.noise_share is 2.0; it must be between 0 and 1"),
        (
            "augmentation.noise_snr_db=[20, 10]",
            "augmentation.noise_snr_db is [20.0, 10.0]; the lower bound",
        ),
        ("augmentation.noise_path=noises", "augmentation.noise_path is set and augmentation.noise_share is 0"),
        ("augmentation.volume_db=3", "augmentation.volume_db is 3.0, which features.cmvn=utterance takes away again"),
    ],
)
def test_bad_recipe_values_are_refused_by_name(override, message):
    with pytest.raises(RecipeError, match=message.replace("[", r"\[").replace("(", r"\(")):
        load_recipe(ROOT / "scripts" / "recipes" / "paper_base.yaml", [override])


@pytest.mark.parametrize("number", ["2:30:00", "1:30.5"])
def test_numbers_in_base_60_are_refused(tmp_path, number):
    """YAML 1.1 has them; who writes 2:30:00 does not mean 9000 steps."""
    file = tmp_path / "r.yaml"
    file.write_text(f"schedule:\n  max_steps: {number}\n")
    with pytest.raises(RecipeError, match=rf"line 2: {number} is a number in base 60; write it in base 10"):
        load_recipe(file)


def test_overrides_are_yaml_and_floats_need_no_dot(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("optimizer: {peak_learning_rate: 2e-3}\nschedule: {max_steps: 5}\n")
    recipe = load_recipe(file, ["optimizer.betas=[0.8, 0.9]", "data.validation_split=null", "model.d_model=64"])
    assert recipe.optimizer.peak_learning_rate == 0.002
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.data.validation_split is None
    assert recipe.model == {"d_model": 64}
