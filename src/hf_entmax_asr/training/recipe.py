"""A recipe is a whole experiment as typed data: every section, every key, its unit and its default stand in this file.

The YAML form has one mapping per section. Unknown keys, wrong types and impossible values are refused when the recipe
is read, before any data is touched.
"""

import dataclasses
import inspect
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError

from hf_entmax_asr.corpora import CORPORA
from hf_entmax_asr.error_messages import in_one_line
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.training.typed_yaml import RecipeError, build, check_finite, read_tree, unknown_key


@dataclass
class TokenizerSection:
    """How text becomes tokens. `path` (a folder with tokenizer.json) is used as it is; otherwise one is trained."""

    kind: Literal["character", "bpe"] = "character"
    vocab_size: int = 5000  # bpe only
    word_boundary: bool = True  # characters only: false drops spaces, for Chinese
    nfkc: bool = False  # Unicode NFKC first: full-width Latin letters become ASCII
    symbols: tuple[str, ...] = ()  # characters only: strings that are one token each, such as marks of noises
    doubled_letters: bool = False  # characters only: "ll" is one token
    path: str | None = None
    train_anew: bool = False  # with start_from: train one on the texts, in place of the checkpoint's


@dataclass
class DataSection:
    """Which utterances train and validate, and when the data is refused.

    `prepared` is a folder that scripts/prepare.py made: its tokenizer is used, and its statistics for global CMVN.
    """

    corpus: str = "folder"  # the form of the data at `path`, one of hf_entmax_asr.corpora.CORPORA
    path: str | None = None
    prepared: str | None = None
    train_split: str = "train"  # or several together: train-clean-100+train-clean-360
    validation_split: str | None = "validation"  # null: no evaluation
    min_duration: float = 0.1  # seconds
    max_duration: float = 30.0  # seconds; one very long clip in a batch costs more than it teaches
    max_unknown_share: float = 0.01  # share of <unk> among a split's tokens above which the data is refused
    word_times: str | None = None  # a CTM file with the words of the training split, for head_regularizer "reference"
    lower_case: bool = False  # of all texts, which a tokenizer of written text spells with fewer pieces
    bad_utterances: Literal["refuse", "drop"] = "refuse"
    feature_cache_megabytes: int = 2048  # per process; a larger corpus is read from disk in every epoch


@dataclass
class BatchingSection:
    """Batches are bounded by padded frames (10 ms each), filled with utterances of similar length."""

    frames_per_batch: int = 16000
    max_utterances: int = 256
    shuffle_window: int = 16  # utterances are sorted by length within windows of this many batches
    short_first_epochs: int = 0  # so many epochs run from the shortest batch to the longest
    accumulation_steps: int = 1
    num_workers: int = 0  # processes that read ahead; 0 reads in the training process (best with a full cache)


@dataclass
class AugmentationSection:
    """SpecAugment (Park et al. 2019): masked bands of mel bins and of frames; and changes of the waveform.

    With other speeds or volumes, the features of the training split are computed anew in every epoch and never cached;
    with noise or silence, those of the utterances that get it. An utterance that is too short for its text at the speed
    it gets adds nothing to the CTC loss in that epoch.
    """

    frequency_masks: int = 2
    frequency_mask_bins: int = 27
    time_masks: int = 2
    time_mask_frames: int = 100
    time_mask_share: float = 0.2  # a time mask is never longer than this share of the utterance
    speeds: tuple[float, ...] = (1.0,)  # every utterance gets one of these in every epoch; [0.9, 1.0, 1.1] is usual
    volume_db: float = 0.0  # ± so many decibels
    noise_share: float = 0.0  # share of the utterances that get noise
    noise_snr_db: tuple[float, float] = (10.0, 30.0)  # speech over noise, uniform between these
    noise_path: str | None = None  # a folder of noise recordings; null: white noise
    silence_share: float = 0.0  # share that gets zeros or faint noise before, behind or in its quietest place
    silence_seconds: float = 2.0  # the longest such silence
    no_speech_share: float = 0.0  # share that becomes silence, noise, hum or music, with an empty text

    @property
    def changes_every_waveform(self) -> bool:
        """Whether all features must be computed anew in every epoch."""
        return self.speeds != (1.0,) or self.volume_db > 0


@dataclass
class OptimizerSection:
    """Adam; `weight_decay` (decoupled) never touches 1-D parameters: α logits, gates, energy biases, norms, biases."""

    peak_learning_rate: float = 1e-3
    alpha_rate_factor: float = 1.0  # times that for the learned α, which moves little in a short training
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    weight_decay: float = 0.0
    max_gradient_norm: float = 5.0
    rate_factors: dict[str, float] = field(default_factory=dict)  # by a part of the parameters' names; the first fits
    frozen: tuple[str, ...] = ()  # parameters whose names hold one of these are not trained
    ema_decay: float | None = None  # 0.999: a running mean of the weights is scored and saved; null: the weights


@dataclass
class ScheduleSection:
    """Warm-up, then inverse square root, then a cool-down, within a budget of `max_steps` or `max_minutes`, or both.

    The cool-down and the straight-through phase are shares of the budget, so they adapt to a budget in minutes.
    """

    warmup_steps: int = 25000
    max_steps: int | None = None
    max_minutes: float | None = None  # since the start of the run, preparation and evaluations included
    clock: Literal["wall", "cpu"] = "wall"  # cpu: minutes of processor time, whatever else the machine does
    cooldown_fraction: float = 0.0  # the last share of the budget, in which the rate falls linearly
    cooldown_floor: float = 0.05  # ... to this share of what it would be
    straight_through_fraction: float = 0.0  # the last share, which trains the hard path (monotonic models)
    regularizer_ramp: tuple[float, float] = (0.0, 0.0)  # shares between which the head penalty's weight rises from 0


@dataclass
class EvaluationSection:
    """When to log, evaluate and save. A checkpoint is written at each evaluation and at the end.

    The link `best` names the latest checkpoint whose `best_metric`, under the model's own decoding, lies within one
    standard error (over the utterances, and at least one word or character) of the lowest.
    """

    log_every_steps: int = 50
    every_steps: int | None = None  # null: at the end only
    every_minutes: float | None = None
    save_every_steps: int | None = None  # further checkpoints, without evaluation
    num_beams: int = 1
    frames_per_batch: int = 16000
    max_utterances: int | None = None  # of the validation split; null: all
    compare_decodings: bool = True  # monotonic models: hard and soft side by side
    best_metric: Literal["wer", "cer"] = "wer"  # by which `best` is chosen
    keep_last: int = 2
    keep_best: int = 1
    average: Literal["none", "last", "best"] = "none"  # average this many of the kept checkpoints at the end
    average_count: int = 5
    tensorboard: bool = True
    analyze_every_steps: int | None = None  # what attention does, into RUN/analysis; at the end too; null: never
    analyze_utterances: int = 16  # of the validation split, for each such analysis


@dataclass
class CardSection:
    """What the model card says that no run can know."""

    title: str | None = None  # null: the name of the run's folder, or of the one above where that is "run"
    languages: tuple[str, ...] = ()  # codes, as "en"
    license: str | None = None  # of the weights, as "apache-2.0"
    datasets: tuple[str, ...] = ()  # names on the Hub


@dataclass
class Recipe:
    """A whole experiment. `model` holds keys of EntmaxAsrConfig, or of EntmaxAsrBaselineConfig where one of them is of
    that alone; `features` those of EntmaxAsrFeatureExtractor.

    With `start_from` training begins with the weights, tokenizer and features of that checkpoint (a folder, or a Hub
    repository); its configuration holds but for the keys in `model`.
    """

    start_from: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    features: dict[str, Any] = field(default_factory=dict)
    data: DataSection = field(default_factory=DataSection)
    batching: BatchingSection = field(default_factory=BatchingSection)
    augmentation: AugmentationSection = field(default_factory=AugmentationSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    card: CardSection = field(default_factory=CardSection)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_values(self)


# Keys of the two free sections that the run itself decides, with the reason given to whoever sets them.
_DECIDED_BY_THE_RUN = {
    "model": dict.fromkeys(
        ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
        "it follows from the tokenizer",
    )
    | {
        "num_mel_bins": "set features.feature_size",
        "monotonic_straight_through": "set schedule.straight_through_fraction",
    },
    "features": {
        "cmvn_mean": "it is measured on the training split",
        "cmvn_std": "it is measured on the training split",
    },
}


def load_recipe(path: str | os.PathLike, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read a recipe from YAML.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings (value in YAML), applied after the file.
    Raises:
        RecipeError: the file is missing or malformed, a key is unknown or a value impossible.
    """
    return recipe_from_dict(read_tree(Path(path), overrides))


def recipe_from_dict(tree: dict[str, Any]) -> Recipe:
    """Build a Recipe from nested plain data; refuses unknown keys with the nearest known name."""
    check_finite(tree)
    recipe: Recipe = build(Recipe, tree, "")
    _check_free_section("model", recipe.model, _model_keys())
    _check_free_section("features", recipe.features, _feature_keys())
    # Values are checked where they belong, by the classes themselves, but now rather than after the data is read.
    for section, check, settings in (
        ("model", config_class(recipe.model), model_settings(recipe)),
        ("features", EntmaxAsrFeatureExtractor, recipe.features),
    ):
        try:
            check(**settings)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise RecipeError(f"the section {section!r} of the recipe: {in_one_line(error)}") from error
    return recipe


def model_settings(recipe: Recipe) -> dict[str, Any]:
    """The model section without an `energy_bias_init` of "auto", which is known only with the data."""
    return {k: v for k, v in recipe.model.items() if (k, v) != ("energy_bias_init", "auto")}


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data (lists, not tuples), for YAML and JSON."""
    tree = dataclasses.asdict(recipe)
    for section in tree.values():
        if isinstance(section, dict):
            section.update({key: list(value) for key, value in section.items() if isinstance(value, tuple)})
    return tree


def recipe_differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """`section.key -> (old value, new value)` for every key whose value differs."""
    old_flat, new_flat = _flatten(recipe_to_dict(old)), _flatten(recipe_to_dict(new))
    return {
        key: (old_flat.get(key), new_flat.get(key))
        for key in sorted(old_flat.keys() | new_flat.keys())
        if old_flat.get(key) != new_flat.get(key)
    }


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def config_class(model: dict[str, Any]) -> type[EntmaxAsrConfig]:
    """Of the recogniser, or of a system to compare with where the model section has a key that only those have."""
    own = _model_keys() - inspect.get_annotations(EntmaxAsrConfig).keys()
    return EntmaxAsrBaselineConfig if own & model.keys() else EntmaxAsrConfig


def _model_keys() -> set[str]:
    return {*inspect.get_annotations(EntmaxAsrConfig), *inspect.get_annotations(EntmaxAsrBaselineConfig)}


def _feature_keys() -> set[str]:
    parameters = inspect.signature(EntmaxAsrFeatureExtractor.__init__).parameters.values()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}


def _check_free_section(section: str, values: dict[str, Any], known: set[str]) -> None:
    for key in values:
        if key in _DECIDED_BY_THE_RUN[section]:
            raise RecipeError(f"{section}.{key} cannot be set: {_DECIDED_BY_THE_RUN[section][key]}")
        if key not in known:
            raise RecipeError(unknown_key(f"{section}.{key}", key, known - _DECIDED_BY_THE_RUN[section].keys()))


# (key, lowest value, highest value), the highest beyond what anybody can mean.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("tokenizer.vocab_size", 8, 1_000_000),
    ("data.min_duration", 0, 86_400),
    ("data.max_unknown_share", 0, 1),
    ("data.feature_cache_megabytes", 0, 10_000_000),
    ("batching.frames_per_batch", 100, 10_000_000),
    ("batching.max_utterances", 1, 100_000),
    ("batching.shuffle_window", 1, 100_000),
    ("batching.short_first_epochs", 0, 1_000_000),
    ("batching.accumulation_steps", 1, 10_000),
    ("batching.num_workers", 0, 256),
    ("augmentation.frequency_masks", 0, 100),
    ("augmentation.frequency_mask_bins", 0, 10_000),
    ("augmentation.time_masks", 0, 1_000),
    ("augmentation.time_mask_frames", 0, 1_000_000),
    ("augmentation.time_mask_share", 0, 1),
    ("augmentation.volume_db", 0, 40),
    ("augmentation.noise_share", 0, 1),
    ("augmentation.silence_share", 0, 1),
    ("augmentation.silence_seconds", 0, 60),
    ("augmentation.no_speech_share", 0, 0.5),
    ("optimizer.weight_decay", 0, 100),
    ("optimizer.ema_decay", 0, 0.999999),
    ("schedule.warmup_steps", 1, 10_000_000),
    ("schedule.max_steps", 1, 100_000_000),
    ("schedule.cooldown_fraction", 0, 1),
    ("schedule.cooldown_floor", 0, 1),
    ("schedule.straight_through_fraction", 0, 1),
    ("evaluation.log_every_steps", 1, 1_000_000_000),
    ("evaluation.every_steps", 1, 1_000_000_000),
    ("evaluation.save_every_steps", 1, 1_000_000_000),
    ("evaluation.num_beams", 1, 1_000),
    ("evaluation.frames_per_batch", 100, 10_000_000),
    ("evaluation.max_utterances", 1, 1_000_000_000),
    ("evaluation.keep_last", 1, 100_000),
    ("evaluation.keep_best", 0, 100_000),
    ("evaluation.average_count", 2, 100_000),
    ("evaluation.analyze_every_steps", 1, 1_000_000_000),
    ("evaluation.analyze_utterances", 1, 100_000),
)
_POSITIVE = (
    "optimizer.peak_learning_rate",
    "optimizer.alpha_rate_factor",
    "optimizer.eps",
    "optimizer.max_gradient_norm",
    "schedule.max_minutes",
    "evaluation.every_minutes",
)
_LARGEST_POSITIVE = 10_000_000


def _check_values(recipe: Recipe) -> None:
    flat = _flatten(dataclasses.asdict(recipe))
    for key, low, high in _RANGES:
        value = flat[key]
        if value is not None and not low <= value <= high:
            bounds = f"between {low} and {high}" if high <= 1 else f"at least {low} and at most {high:,}"
            raise RecipeError(f"{key} is {value}; it must be {bounds}")
    for key in _POSITIVE:
        if flat[key] is not None and not 0 < flat[key] <= _LARGEST_POSITIVE:
            raise RecipeError(f"{key} is {flat[key]}; it must be above 0 and at most {_LARGEST_POSITIVE:,}")
    if recipe.schedule.max_steps is None and recipe.schedule.max_minutes is None:
        raise RecipeError("the recipe has no end: set schedule.max_steps or schedule.max_minutes")
    if recipe.data.corpus not in CORPORA:
        known = ", ".join(map(repr, CORPORA))
        raise RecipeError(f"data.corpus is {recipe.data.corpus!r}; it must be one of {known}")
    if recipe.data.prepared is not None and recipe.tokenizer.path is not None:
        raise RecipeError("data.prepared and tokenizer.path both name a tokenizer; set one of them")
    if recipe.data.max_duration <= recipe.data.min_duration:
        durations = f"data.max_duration ({recipe.data.max_duration} s) must be above data.min_duration"
        raise RecipeError(f"{durations} ({recipe.data.min_duration} s)")
    if recipe.evaluation.analyze_every_steps is not None and recipe.data.validation_split is None:
        raise RecipeError(
            f"evaluation.analyze_every_steps is {recipe.evaluation.analyze_every_steps} and data.validation_split is "
            "null: there is nothing to analyse. Name a split, or set evaluation.analyze_every_steps to null"
        )
    _check_augmentation(recipe)
    begin, end = recipe.schedule.regularizer_ramp
    if not 0 <= begin <= end <= 1:
        raise RecipeError(f"schedule.regularizer_ramp is {[begin, end]}; it must be two shares of the budget, in order")
    by_reference = recipe.model.get("head_regularizer") == "reference"
    if by_reference != (recipe.data.word_times is not None):
        raise RecipeError(
            f"model.head_regularizer is {recipe.model.get('head_regularizer')!r} and data.word_times is "
            f"{recipe.data.word_times!r}: set both ('reference' and a CTM file of scripts/align.py), or neither"
        )
    if not all(0 <= beta < 1 for beta in recipe.optimizer.betas):
        raise RecipeError(f"optimizer.betas are {list(recipe.optimizer.betas)}; each must be in [0, 1)")


def _check_augmentation(recipe: Recipe) -> None:
    section = recipe.augmentation
    if not section.speeds or not all(0.5 <= speed <= 2 for speed in section.speeds):
        raise RecipeError(f"augmentation.speeds is {list(section.speeds)}; give one or more, each between 0.5 and 2")
    if section.noise_snr_db[0] > section.noise_snr_db[1]:
        raise RecipeError(f"augmentation.noise_snr_db is {list(section.noise_snr_db)}; the lower bound comes first")
    if section.noise_path is not None and section.noise_share == section.no_speech_share == 0:
        raise RecipeError("augmentation.noise_path is set and augmentation.noise_share is 0: no utterance gets noise")
    if section.volume_db > 0 and recipe.features.get("cmvn", "utterance") == "utterance":
        raise RecipeError(
            f"augmentation.volume_db is {section.volume_db}, which features.cmvn=utterance takes away again: set "
            "features.cmvn=global, or augmentation.volume_db=0"
        )
