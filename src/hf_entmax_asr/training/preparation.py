"""What stands before the first step: the data, checked; the processor, fitted to it; the model, sized by both."""

import itertools
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import concatenate_datasets
from transformers import AutoTokenizer

from hf_entmax_asr.analysis.phonemes import LabelError, read_ctm
from hf_entmax_asr.analysis.word_alignment import label_ends
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora import CORPORA, read_corpus
from hf_entmax_asr.evenly_spaced import evenly_spaced
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.model.modeling_entmax_asr_baselines import recogniser_class
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.recognition.checkpoint import CheckpointError, load_recogniser
from hf_entmax_asr.recognition.utterances import DataError, Utterances, cache_features, prepare_split
from hf_entmax_asr.tokenization import train_tokenizer
from hf_entmax_asr.training.batch_loader import noise_files
from hf_entmax_asr.training.checkpointing import CheckpointStore
from hf_entmax_asr.training.data_checks import usable_utterances
from hf_entmax_asr.training.memory import check_memory
from hf_entmax_asr.training.model_card import DataFacts
from hf_entmax_asr.training.new_tokenizer import with_tokenizer
from hf_entmax_asr.training.recipe import (
    Recipe,
    RecipeError,
    TokenizerSection,
    config_class,
    load_recipe,
    model_settings,
    recipe_differences,
    recipe_to_dict,
)
from hf_entmax_asr.training.starting_point import fit_to_texts, load_start, token_limit
from hf_entmax_asr.training.training_state import STATE_FOLDER, TrainingState, read_training_state

logger = logging.getLogger(__name__)
RECIPE = "recipe.yaml"
_CMVN_UTTERANCES = 2000  # enough for global statistics: they settle after minutes of speech


@dataclass
class Splits:
    """The training utterances, and those of validation where the recipe names a split."""

    train: Utterances
    validation: Utterances | None
    seconds_per_frame: float

    def facts(self) -> DataFacts:
        """For the model card."""
        hours = float(self.train.frames.sum()) * self.seconds_per_frame / 3600
        return DataFacts(len(self.train), hours, len(self.validation or ()))


@dataclass
class Prepared:
    """Everything a run starts from; `checkpoint` is where it goes on, None for a new run."""

    model: Any  # a recogniser, or a system to compare with
    processor: EntmaxAsrProcessor
    splits: Splits
    state: TrainingState
    checkpoint: Path | None


def prepare(recipe: Recipe, output: Path, resume: bool, accelerator: Accelerator) -> Prepared:
    """Check everything and load it; the same in every process.

    Raises:
        RecipeError, DataError, CheckpointError: with what to change.
    """
    checkpoint = _open_output(recipe, output, resume, accelerator)
    noise_files(recipe.augmentation)  # that there are none is known now, not after the data is read
    set_seed(recipe.seed)
    logger.info("reading the list of %s", recipe.data.path)
    with accelerator.main_process_first():
        rows = load_rows(recipe)
    if checkpoint is None and recipe.start_from is not None:
        model, processor = load_start(recipe)
        model, processor = _for_tokenizer(recipe, rows, model, processor)
        splits = prepare_splits(recipe, rows, processor, model.config)
        fit_to_texts(model, recipe, splits.train)
        return Prepared(model, processor, splits, TrainingState(data_fingerprint=splits.train.fingerprint()), None)
    if checkpoint is None:
        processor = _build_once(recipe, rows, output, accelerator)
        config = build_config(recipe, processor)
        splits = prepare_splits(recipe, rows, processor, config)
        model = build_model(recipe, config, splits.train)
        state = TrainingState(data_fingerprint=splits.train.fingerprint())
        return Prepared(model, processor, splits, state, None)
    state = read_training_state(checkpoint)
    if CheckpointStore(output).path(state.step) != checkpoint:
        raise CheckpointError(f"{checkpoint} holds the training state of step {state.step}: it was put together of two")
    model, processor = load_recogniser(checkpoint, "cpu", any_system=True)
    splits = prepare_splits(recipe, rows, processor, model.config)
    if splits.train.fingerprint() != state.data_fingerprint:
        raise CheckpointError(
            f"the training data is not that of {checkpoint}: ids, lengths or texts differ, so the run cannot go on "
            "exactly. Give the data it was started with, or start a new run in another folder."
        )
    return Prepared(model, processor, splits, state, checkpoint)


def _open_output(recipe: Recipe, output: Path, resume: bool, accelerator: Accelerator) -> Path | None:
    """The checkpoint to resume from, or None for a new run, whose recipe.yaml is then written."""
    store = CheckpointStore(output)
    if accelerator.is_main_process:
        store.recover()
    accelerator.wait_for_everyone()
    checkpoint = store.last()
    accelerator.wait_for_everyone()  # nobody writes before all have looked
    if not resume:
        if checkpoint is not None:
            raise CheckpointError(
                f"{output} holds a run already ({checkpoint.name}): resume it, or name another folder"
            )
        if accelerator.is_main_process:
            text = yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)
            write_text_atomically(output / RECIPE, text)
        return None
    if checkpoint is None:
        raise CheckpointError(f"there is no checkpoint to resume in {output / 'checkpoints'}")
    file = checkpoint / STATE_FOLDER / RECIPE
    try:
        before = load_recipe(file)
    except RecipeError as error:
        raise CheckpointError(f"{file} does not tell how {checkpoint} was trained: {error}") from error
    for key, (old, new) in recipe_differences(before, recipe).items():
        if key.split(".")[0] in ("model", "tokenizer", "features"):
            raise CheckpointError(f"{key} was {old!r} and is now {new!r}: a resumed run keeps its model and features")
        logger.warning("resuming with %s = %r, which was %r", key, new, old)
    return checkpoint


def _build_once(recipe: Recipe, rows: dict[str, Any], output: Path, accelerator: Accelerator) -> EntmaxAsrProcessor:
    """The processor, made by the main process and read by the others."""
    folder = output / "processor"
    if accelerator.is_main_process:
        try:
            build_processor(recipe, rows).save_pretrained(folder)
        except (OSError, ValueError) as error:
            raise DataError(f"the tokenizer or the features cannot be prepared: {error}") from error
    accelerator.wait_for_everyone()
    return EntmaxAsrProcessor.from_pretrained(folder)


def load_rows(recipe: Recipe) -> dict[str, Any]:
    """The recipe's splits as data sets, by role ("train", "validation").

    Raises:
        DataError: no data folder is named, it is damaged, or it lacks a split.
    """
    section = recipe.data
    if section.path is None:
        raise DataError("no data: give --data FOLDER or set data.path in the recipe")
    roles = {"train": section.train_split, "validation": section.validation_split}
    wanted = {role: name.split("+") for role, name in roles.items() if name is not None}
    named = None
    if CORPORA[section.corpus].splits:  # else they are known only once they are read
        named = list(itertools.chain(*wanted.values()))
    try:
        splits = read_corpus(section.corpus, section.path, splits=named, bad_utterances=section.bad_utterances).splits
    except (OSError, ValueError, ImportError) as error:
        raise DataError(str(error)) from error
    rows = {}
    for role, names in wanted.items():
        if absent := [name for name in names if name not in splits]:
            raise DataError(
                f"{section.path} has no split {absent[0]!r} (it has {', '.join(map(repr, splits))}); "
                f"set data.{role}_split" + (" to one of them, or to null" if role == "validation" else "")
            )
        rows[role] = concatenate_datasets([splits[name] for name in names]) if len(names) > 1 else splits[names[0]]
    return rows


def build_processor(recipe: Recipe, rows: dict[str, Any]) -> EntmaxAsrProcessor:
    """Feature extractor by the recipe (global CMVN measured on the training split) and tokenizer of its text."""
    extractor = EntmaxAsrFeatureExtractor(**recipe.features)
    prepared = None if recipe.data.prepared is None else _prepared(recipe.data.prepared)
    if extractor.needs_statistics and prepared is not None:
        _take_statistics(extractor, prepared.feature_extractor, recipe.data.prepared)
    elif extractor.needs_statistics:
        rate = extractor.sampling_rate
        sample = evenly_spaced(len(rows["train"]), _CMVN_UTTERANCES)
        extractor.fit_global_cmvn((read_audio(rows["train"][i]["audio"], rate) for i in sample), sampling_rate=rate)
    if prepared is not None:
        tokenizer: Any = prepared.tokenizer
        _check_tokenizer(tokenizer, str(recipe.data.prepared))
    else:
        tokenizer = _tokenizer(recipe.tokenizer, list(rows["train"]["text"]))
    return EntmaxAsrProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def _for_tokenizer(
    recipe: Recipe, rows: dict[str, Any], model: Any, processor: EntmaxAsrProcessor
) -> tuple[Any, EntmaxAsrProcessor]:
    """The checkpoint that the recipe starts from, with the tokenizer that the recipe asks for, if it asks for one."""
    section = recipe.tokenizer
    if section.path is None and not section.train_anew:
        return model, processor
    try:
        tokenizer = _tokenizer(section, list(rows["train"]["text"]))
    except (OSError, ValueError) as error:
        raise DataError(f"the tokenizer cannot be prepared: {error}") from error
    model = with_tokenizer(model, processor.tokenizer, tokenizer)
    return model, EntmaxAsrProcessor(feature_extractor=processor.feature_extractor, tokenizer=tokenizer)


def _tokenizer(section: TokenizerSection, texts: list[str]) -> Any:
    """The tokenizer at `path`, or one that is trained on the texts."""
    if section.path is not None:
        tokenizer = AutoTokenizer.from_pretrained(section.path)
        _check_tokenizer(tokenizer, section.path)
        return tokenizer
    return train_tokenizer(
        section.kind,
        texts,
        vocab_size=section.vocab_size,
        word_boundary=section.word_boundary,
        nfkc=section.nfkc,
        symbols=section.symbols,
        doubled_letters=section.doubled_letters,
    )


def _prepared(folder: str) -> EntmaxAsrProcessor:
    if not (Path(folder) / "processor_config.json").is_file():
        raise RecipeError(f"data.prepared is {folder}, where scripts/prepare.py has made nothing: run it, or set null")
    return EntmaxAsrProcessor.from_pretrained(folder)


def _take_statistics(extractor: EntmaxAsrFeatureExtractor, prepared: Any, folder: str | None) -> None:
    """The mean and deviation of another extractor; RecipeError where its features are not the same."""
    for key in extractor.frame_settings:
        ours, theirs = getattr(extractor, key), getattr(prepared, key, None)
        if ours != theirs:
            raise RecipeError(f"features.{key} is {ours}, but {folder} was prepared with {theirs}; prepare it anew")
    extractor.cmvn_mean, extractor.cmvn_std = prepared.cmvn_mean, prepared.cmvn_std


def _check_tokenizer(tokenizer: Any, path: str) -> None:
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id"):
        if getattr(tokenizer, name) is None:
            raise RecipeError(f"the tokenizer in {path} has no {name}; the model needs it")
    ids = tokenizer("a").input_ids
    if not ids or ids[-1] != tokenizer.eos_token_id or tokenizer.bos_token_id in ids:
        raise RecipeError(
            f"the tokenizer in {path} makes {ids} of 'a'; it must append its end token ({tokenizer.eos_token_id}) "
            "and no start token, as those of hf_entmax_asr.tokenization do"
        )


def prepare_splits(recipe: Recipe, rows: dict[str, Any], processor: EntmaxAsrProcessor, config: Any) -> Splits:
    """Tokenise, check and, where it fits, cache the features of the splits (training split first)."""
    budget = float(recipe.data.feature_cache_megabytes)
    prepared: dict[str, Utterances] = {}
    for role, split in rows.items():
        utterances = prepare_split(split, processor, recipe.data.lower_case)
        if role == "train" and recipe.data.word_times is not None:
            add_word_times(utterances, recipe.data.word_times, processor.tokenizer)
        by_ctc = config.ctc_loss_weight > 0 or getattr(config, "head", None) == "ctc"
        positions = config.positions_of(utterances.frames) if by_ctc else None
        utterances = usable_utterances(role, utterances, recipe.data, processor.tokenizer, positions)
        if role == "validation" and recipe.evaluation.max_utterances is not None:
            utterances = utterances.select(evenly_spaced(len(utterances), recipe.evaluation.max_utterances))
        limit = recipe.batching.frames_per_batch
        slowest = processor.feature_extractor.frames_at(utterances.frames, min(recipe.augmentation.speeds))
        if role == "train" and slowest.max() > limit:
            longest = utterances.ids[int(slowest.argmax())]
            raise RecipeError(
                f"utterance {longest} has {slowest.max()} frames and batching.frames_per_batch is {limit}: "
                "raise it, or lower data.max_duration"
            )
        changing = role == "train" and recipe.augmentation.changes_every_waveform
        logger.info("%s: %d utterances; looking at their audio", role, len(utterances))
        cached = not changing and cache_features(utterances, processor.feature_extractor, budget)
        if cached:
            budget -= sum(f.numel() for f in utterances.features or ()) * 2 / 2**20
        logger.info(
            "%s: %d utterances, %.2f hours, %d tokens; features %s",
            role,
            len(utterances),
            utterances.frames.sum() * processor.feature_extractor.seconds_per_frame / 3600,
            utterances.tokens.sum(),
            "kept in memory"
            if cached
            else "computed in every epoch (augmentation changes every waveform)"
            if changing
            else "read in every epoch (data.feature_cache_megabytes is too small to keep them)",
        )
        prepared[role] = utterances
    return Splits(prepared["train"], prepared.get("validation"), processor.feature_extractor.seconds_per_frame)


def add_word_times(utterances: Utterances, path: str, tokenizer: Any) -> None:
    """Give the labels of a split the times of its words, which a CTM file holds.

    Raises:
        DataError: the file cannot be read, or has no utterance of the split with the words of its text.
    """
    try:
        words = read_ctm(path)
    except (OSError, LabelError) as error:
        raise DataError(f"data.word_times: {error}") from error
    ends, found = [], 0
    for name, text, labels in zip(utterances.ids, utterances.texts, utterances.labels, strict=True):
        times = None
        if name in words:
            offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            times = label_ends(text, offsets, words[name])
        found += times is not None
        ends.append(times or [math.nan] * len(labels))
    if not found:
        raise DataError(
            f"data.word_times: {path} has no utterance of the training split with the words of its text; "
            f"its first utterance is {next(iter(words))!r}, that of the split is {utterances.ids[0]!r}"
        )
    logger.info("%s has the word times of %d of %d utterances", path, found, len(utterances))
    utterances.ends = ends


def build_config(recipe: Recipe, processor: EntmaxAsrProcessor) -> EntmaxAsrConfig:
    """The model's configuration; an `energy_bias_init` of "auto" stays at its default until the data is known."""
    tokenizer = processor.tokenizer
    return config_class(recipe.model)(
        **model_settings(recipe),
        vocab_size=len(tokenizer),
        num_mel_bins=processor.feature_extractor.feature_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )


def build_model(recipe: Recipe, config: EntmaxAsrConfig, train: Utterances) -> Any:
    """A new model. With `energy_bias_init: auto` the bias starts at −log(encoder positions per token) of the data."""
    if "max_tokens_per_position" not in recipe.model:
        config.max_tokens_per_position = token_limit(config, train)
    if recipe.model.get("energy_bias_init") == "auto":
        positions = config.positions_of(train.frames).sum() / train.tokens.sum()
        config.energy_bias_init = -math.log(positions)
        logger.info("%.2f encoder positions per token: energy bias %.3f", positions, config.energy_bias_init)
    check_memory(config)
    return recogniser_class(config)(config)
