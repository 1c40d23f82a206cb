"""The kinds of files that the programs read, how each is damaged, and the command that reads it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from experiments.damaged_inputs import damages as of_any
from experiments.damaged_inputs import formats
from experiments.damaged_inputs.damages import BYTES, TEXT, Damage
from experiments.damaged_inputs.good_inputs import AUDIO, RECIPE
from safetensors.torch import load_file


@dataclass(frozen=True)
class Kind:
    """A file among the good inputs, and a command over it.

    Attributes:
        file: what is damaged, below the folder of good inputs.
        command: a program and its arguments; `@NAME` is an input (or its damaged copy), `@@NAME` is written.
        damages: ways to damage the file, taken in turns.
        parse: raises for a file that is surely broken.
        names: an error must say one of these, or the name of the file.
        accepts_with: what the program says of a good input where it ends with an error nevertheless.
        may_be_empty: an empty file is a good one.
    """

    name: str
    file: str
    command: tuple[str, ...]
    damages: tuple[Damage, ...]
    parse: Callable[[Path], Any] | None = None
    names: tuple[str, ...] = ()
    accepts_with: str = ""
    may_be_empty: bool = False


def parse_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


def parse_json_lines(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        json.loads(line)


def parse_history(path: Path) -> None:
    """A last line that a crash cut off is passed over."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        json.loads(line)


def parse_yaml(path: Path) -> None:
    yaml.safe_load(path.read_text(encoding="utf-8"))


def parse_text(path: Path) -> None:
    path.read_text(encoding="utf-8")


LISTED = ("listed twice", "with an empty text")
SECTIONS = (*RECIPE, "data", "section", "optimizer", "tokenizer", "augmentation", "seed")
NO_WORDS = "so there are no times to measure"  # a model of one step recognises none right
CPU = ("--device", "cpu")
TRANSCRIBE = ("transcribe", "@checkpoint", "@speech.wav", *CPU)
EVALUATE = ("evaluate", "@checkpoint", "@corpus", "--output", "@@hyps.jsonl", "--report", "@@report.html", *CPU)
RESUME = ("train", "--output", "@run", "--resume")
STEP = "run/checkpoints/step-00000001"
# Of these nothing is read, or whatever they say is as good.
NOT_READ = (
    *("transformers_version", "architectures", "_from_model_config", "dtype", "torch_dtype", "auto_map"),
    *("backend", "is_local", "local_files_only", "model_input_names", "tokenizer_class", "model_max_length"),
    "init_std",
)
# Of Whisper's extractor, the sampling rate, the window and the hop are compared with what `kind="whisper"` computes.
NOT_OF_WHISPER = (
    *("return_attention_mask", "chunk_length", "n_samples", "nb_max_frames", "padding_value", "padding_side"),
    *("feature_size", "feature_extractor_type", "dither", "processor_class"),
)
# Of its generation settings; length and special tokens are taken from config.json.
NOT_KEPT = ("max_length", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
# Of a history, pictures are made of α and the gates.
REPORTED = (
    *("loss", "cross_entropy_loss", "ctc_loss", "gradient_norm", "learning_rate", "frames_per_second", "epoch"),
    *("elapsed_seconds", "time", "wer", "cer", "seconds", "validation"),
)


def _json(*free: str) -> tuple[Damage, ...]:
    return (*TEXT, *(of_any.json_values(*NOT_READ, *free),) * 9)


TENSORS = (*BYTES, formats.tensor_header, formats.tensors, formats.tensors, formats.tensors)
LABELS = (*TEXT, *(of_any.numbers,) * 5, *(of_any.fields,) * 2)
ROWS = (*TEXT, *(of_any.json_lines(),) * 7)
HISTORY = (*TEXT, *(of_any.json_lines(*REPORTED),) * 7)
TABLE = (*TEXT, *(formats.table,) * 6)
WHISPER = ("convert_whisper", "@whisper", "--output", "@@made")


def _checkpoint_kinds() -> list[Kind]:
    return [
        Kind("config.json", "checkpoint/config.json", TRANSCRIBE, _json(), parse_json),
        Kind("generation_config.json", "checkpoint/generation_config.json", TRANSCRIBE, _json(), parse_json),
        Kind("processor_config.json", "checkpoint/processor_config.json", TRANSCRIBE, _json(), parse_json),
        Kind("tokenizer.json", "checkpoint/tokenizer.json", TRANSCRIBE, _json(), parse_json),
        Kind("tokenizer_config.json", "checkpoint/tokenizer_config.json", TRANSCRIBE, _json(), parse_json),
        Kind("model.safetensors", "checkpoint/model.safetensors", TRANSCRIBE, TENSORS, load_file),
        Kind(
            "model.safetensors (sparsify)",
            "checkpoint/model.safetensors",
            ("sparsify", "@checkpoint", "@corpus", "--output", "@@made", "--clips", "1"),
            TENSORS,
            load_file,
        ),
        Kind(
            "config.json (prune)",
            "checkpoint/config.json",
            ("prune", "@checkpoint", "--out", "@@made", "--heads", "encoder.layers.0.self_attn:1"),
            _json(),
            parse_json,
        ),
        Kind(
            "config.json (stream)",
            "checkpoint/config.json",
            ("stream", "@checkpoint", "@speech.wav", *CPU),
            _json(),
            parse_json,
        ),
        Kind("Whisper's config.json", "whisper/config.json", WHISPER, _json(), parse_json),
        Kind(
            "Whisper's generation_config.json", "whisper/generation_config.json", WHISPER, _json(*NOT_KEPT), parse_json
        ),
        Kind(
            "Whisper's preprocessor_config.json",
            "whisper/preprocessor_config.json",
            WHISPER,
            _json(*NOT_OF_WHISPER),
            parse_json,
        ),
        Kind("Whisper's tokenizer.json", "whisper/tokenizer.json", WHISPER, _json(), parse_json),
        Kind("Whisper's model.safetensors", "whisper/model.safetensors", WHISPER, TENSORS, load_file),
    ]


def _run_kinds() -> list[Kind]:
    state = f"{STEP}/training_state"
    start = ("train", "--recipe", "@recipe.yaml", "--output", "@@run")
    values = (*TEXT, formats.recipe, formats.recipe, *(of_any.yaml_values(),) * 5, *(formats.recipe_numbers,) * 3)
    by_times = (
        *("model.head_regularizer=reference", "model.head_regularizer_weight=0.1"),
        *("model.head_regularizer_layers=[0]", "data.word_times=@train.ctm"),
    )
    return [
        Kind("recipe", "recipe.yaml", start, values, parse_yaml, SECTIONS),
        Kind("recipe of a run (resume)", "run/recipe.yaml", RESUME, values, parse_yaml, SECTIONS),
        Kind("state.json (resume)", f"{state}/state.json", RESUME, _json(), parse_json),
        Kind("optimizer.safetensors (resume)", f"{state}/optimizer.safetensors", RESUME, TENSORS, load_file),
        Kind("random.safetensors (resume)", f"{state}/random.safetensors", RESUME, TENSORS, load_file),
        Kind("model.safetensors (resume)", f"{STEP}/model.safetensors", RESUME, TENSORS, load_file),
        Kind("config.json (resume)", f"{STEP}/config.json", RESUME, _json(), parse_json),
        Kind("history.jsonl (resume)", "run/history.jsonl", RESUME, HISTORY, parse_history, may_be_empty=True),
        Kind("CTM (train)", "train.ctm", (*start, "--set", *by_times), LABELS),
        Kind(
            "metadata.csv (train)",
            "corpus/train/metadata.csv",
            (*start, "--data", "@corpus"),
            TABLE,
            parse_text,
            LISTED,
        ),
    ]


def _text_kinds() -> list[Kind]:
    analyze = ("analyze", "@checkpoint", "@corpus", "--out", "@@report", "--json-only", *CPU, "--labels")
    choose = (
        "choose_word_times",
        "@checkpoint",
        "@corpus",
        "--split",
        "test",
        "--only-measure",
        "--test-split",
        "test",
    )
    prune = ("prune", "@checkpoint", "--out", "@@made", "--redundant", "1", "--analysis", "@report/analysis.json")
    reuse = ("reuse", "@checkpoint", "--out", "@@made", "--budget", "1", "--analysis", "@report/analysis.json")
    tune = (
        "tune_lm",
        "@checkpoint",
        "@corpus",
        "--lm",
        "@lm.arpa",
        "--split",
        "test",
        "--weights",
        "0.3",
        "--bonuses",
        "0",
    )
    compare = ("compare", "@first.jsonl", "@second.jsonl")
    jsonl = ("evaluate", "@checkpoint", "@corpus_jsonl", "--output", "@@hyps.jsonl", *CPU)
    align = ("align", "@whisper_start", "@corpus", "--output", "@@words.ctm")
    spelled = (*compare, "--normalization", "english", "--spelling-table", "@spelling.json")
    return [
        Kind("metadata.csv", "corpus/test/metadata.csv", EVALUATE, TABLE, parse_text, LISTED),
        Kind("metadata.csv (align)", "corpus/train/metadata.csv", align, TABLE, parse_text, LISTED),
        Kind("metadata.jsonl", "corpus_jsonl/test/metadata.jsonl", jsonl, ROWS, parse_json_lines, LISTED),
        Kind("TextGrid", "textgrids/000.TextGrid", (*analyze, "@textgrids"), LABELS),
        Kind("CTM of phonemes", "phones_ctm/phones.ctm", (*analyze, "@phones_ctm"), LABELS),
        Kind("CTM of words", "test.ctm", (*choose, "--test-times", "@test.ctm", *CPU), LABELS, accepts_with=NO_WORDS),
        Kind(
            "word_times.json",
            "corpus/test/word_times.json",
            (*choose, *CPU),
            _json(),
            parse_json,
            accepts_with=NO_WORDS,
        ),
        Kind("results of evaluate.py", "second.jsonl", compare, ROWS, parse_json_lines, ("in the two files",)),
        Kind("spelling table", "spelling.json", spelled, _json(), parse_json),
        Kind("analysis.json (prune)", "report/analysis.json", prune, _json(), parse_json),
        Kind("analysis.json (reuse)", "report/analysis.json", reuse, _json(), parse_json),
        Kind("ARPA", "lm.arpa", (*EVALUATE, "--lm", "@lm.arpa"), LABELS, parse_text),
        Kind("ARPA (tune_lm)", "lm.arpa", (*tune, "--max-utterances", "1", *CPU), LABELS, parse_text),
        Kind(
            "text of a language model", "text.txt", ("train_lm", "@text.txt", "--output", "@@lm.arpa"), TEXT, parse_text
        ),
    ]


def _audio_kinds() -> list[Kind]:
    def of(suffix: str) -> tuple[Damage, ...]:
        return (*BYTES, *(formats.recordings(AUDIO[suffix]),) * 5)

    kinds = [
        Kind(f"{suffix} file", f"speech.{suffix}", ("transcribe", "@checkpoint", f"@speech.{suffix}", *CPU), of(suffix))
        for suffix in AUDIO
    ]
    stream = ("stream", "@checkpoint", "@speech.wav", *CPU)
    start = ("train", "--recipe", "@recipe.yaml", "--data", "@corpus", "--output", "@@run")
    return [
        *kinds,
        Kind("wav file (stream)", "speech.wav", stream, of("wav")),
        Kind("wav file (evaluate)", "corpus/test/001.wav", EVALUATE, of("wav")),
        Kind("wav file (train)", "corpus/train/001.wav", start, of("wav"), names=("data.bad_utterances=drop",)),
    ]


KINDS = {kind.name: kind for kind in (*_checkpoint_kinds(), *_run_kinds(), *_text_kinds(), *_audio_kinds())}
