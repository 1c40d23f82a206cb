"""The recipes of the three corpora: each trains three steps on its corpus as shipped, rebuilt in a few files.

The model is made small and the clips are three seconds long, so that CTC has room; all else is the recipe's own.
"""

import importlib.util
import math
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.training import load_recipe, read_history, train
from hf_entmax_asr.training.recipe import recipe_to_dict
from support import corpus_trees

SCRIPTS = Path(__file__).parent.parent / "scripts"
LIBRISPEECH_SUBSETS = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean")
WRITERS = {
    "aishell1": corpus_trees.write_aishell1,
    "wsj": corpus_trees.write_wsj,
    "librispeech": lambda root: corpus_trees.write_librispeech(root, LIBRISPEECH_SUBSETS),
}
RECIPES = [f"{corpus}_{kind}" for corpus in WRITERS for kind in ("paper", "strong")]
# The paper's row by the splits on which it is scored.
PAPER_ROWS = {
    "aishell1": ("Table I", "8.45 % test"),
    "wsj": ("Table I", "8.37 % on eval93"),
    "librispeech": ("Table IV", "3.70 % test-clean, 11.64 % test-other"),
}
SMALL = [
    *("model.d_model=16", "model.encoder_layers=1", "model.decoder_layers=2", "model.subsampling_channels=2"),
    *("model.encoder_attention_heads=2", "model.decoder_attention_heads=2"),
    *("model.encoder_ffn_dim=16", "model.decoder_ffn_dim=16"),
    *("batching.frames_per_batch=1000", "batching.num_workers=0"),
    *("schedule.max_steps=3", "schedule.warmup_steps=2"),
    *("evaluation.log_every_steps=1", "evaluation.every_steps=2", "evaluation.max_utterances=1"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A function that gives the folder of a corpus, prepared by scripts/prepare.py on its first call."""
    specification = importlib.util.spec_from_file_location("prepare", SCRIPTS / "prepare.py")
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    made = {}
    voice = corpus_trees.voice

    def make(corpus: str) -> Path:
        if corpus not in made:
            folder = tmp_path_factory.mktemp(corpus)
            WRITERS[corpus](folder / "data")
            arguments = ["prepare.py", corpus, folder / "data", "--output", folder / f"prepared/{corpus}"]
            arguments += ["--vocab-size", 40] if corpus == "librispeech" else []
            patch.setattr(sys, "argv", [str(argument) for argument in arguments])
            assert program.main() == 0
            made[corpus] = folder
        return made[corpus]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(corpus_trees, "voice", lambda seed, seconds=None: voice(seed, 3.0))
        yield make


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_three_steps_on_its_rebuilt_corpus(name, prepared, monkeypatch, tmp_path):
    corpus, kind = name.split("_")
    folder = prepared(corpus)
    monkeypatch.chdir(folder)  # data.prepared is relative, as in the recipe's commands
    overrides = [*SMALL, f"data.path={folder / 'data'}"]
    if corpus == "librispeech":
        overrides.append("data.max_unknown_share=0.2")  # the letters of DEV-CLEAN, which its texts here name
    if kind == "strong":
        overrides += ["schedule.straight_through_fraction=0.4", "schedule.cooldown_fraction=0.4"]  # the third step
    recipe = load_recipe(SCRIPTS / "recipes" / f"{name}.yaml", overrides)
    result = train(recipe, tmp_path / "run")
    assert (result.step, result.finished) == (3, True)
    steps = [r for r in read_history(tmp_path / "run" / "history.jsonl") if "evaluation" not in r]
    assert [r["step"] for r in steps] == [1, 2, 3]
    assert all(math.isfinite(r["loss"]) and r["gradient_norm"] > 0 for r in steps)
    assert all(("ctc_loss" in r, "head_penalty" in r) == (kind == "strong", kind == "paper") for r in steps)
    assert (tmp_path / "run" / "average").exists() == (kind == "strong")
    model, processor = load_recogniser(result.best, "cpu")
    assert processor.feature_extractor.cmvn == ("global" if kind == "strong" else "utterance")
    assert list(result.scores) == ["hard", "soft"]
    assert model.config.encoder_transform == model.config.decoder_transform == "entmax"
    assert all(gate.shape == (2,) for gate in model.gates().values())
    assert len(model.gates()) == (2 if kind == "paper" else 0)


def test_noises_of_wsj_are_one_token_when_a_recipe_makes_its_own_tokenizer_too(prepared, monkeypatch, tmp_path):
    folder = prepared("wsj")
    made = EntmaxAsrProcessor.from_pretrained(folder / "prepared/wsj").tokenizer
    overrides = [*SMALL, f"data.path={folder / 'data'}", "data.prepared=null", "features.cmvn=utterance"]
    overrides += ["augmentation.volume_db=0", "data.validation_split=null", "evaluation.average=none"]
    result = train(load_recipe(SCRIPTS / "recipes/wsj_strong.yaml", overrides), tmp_path / "run", stop_after=1)
    tokenizer = EntmaxAsrProcessor.from_pretrained(result.last).tokenizer
    assert tokenizer.get_vocab() == made.get_vocab()
    assert "<NOISE>" in tokenizer.get_vocab()


@pytest.mark.parametrize("corpus", WRITERS)
def test_the_other_rows_of_the_papers_table_are_overrides(corpus):
    file = SCRIPTS / "recipes" / f"{corpus}_paper.yaml"
    for transform in ("softmax", "sparsemax", "entmax15", "entmax"):
        both = [f"model.{side}_transform={transform}" for side in ("encoder", "decoder")]
        for more in (
            [],
            ["model.softmax_temperature=0.5"],
            ["model.cross_attention=full", "model.head_regularizer=none"],
        ):
            assert load_recipe(file, both + more).model["encoder_transform"] == transform


@pytest.mark.parametrize("name", RECIPES)
def test_the_head_of_a_recipe_says_what_it_is_and_how_to_run_it(name):
    corpus, _ = name.split("_")
    text = (SCRIPTS / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    head = " ".join(line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines())
    for part in (*PAPER_ROWS[corpus], "hours. That is an estimate, nobody has run it", f"prepare.py {corpus}"):
        assert part in head
    assert f"--recipe scripts/recipes/{name}.yaml" in head
    assert f"evaluate.py runs/{name}/best" in head
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(("name", "kind"), [("one_gpu", "NO"), ("ddp", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_accelerate_reads_its_configuration_files(name, kind):
    file = SCRIPTS / "launch" / f"{name}.yaml"
    config = load_config_from_file(str(file))  # raises on keys that accelerate does not know
    assert config.distributed_type.value == kind
    assert config.mixed_precision == "bf16"
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["num_processes"] == config.num_processes


def test_the_recipe_for_small_corpora_is_that_of_the_demo_until_time_is_up():
    small, demo = (
        recipe_to_dict(load_recipe(SCRIPTS / f"recipes/{name}.yaml")) for name in ("small_corpus", "prompts_demo")
    )
    differ = {section for section in demo if small[section] != demo[section]}
    assert differ == {"schedule", "evaluation"}
    assert (small["schedule"]["max_steps"], small["schedule"]["max_minutes"]) == (None, 30)
