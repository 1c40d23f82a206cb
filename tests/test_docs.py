"""The documentation is true: Python blocks run, commands name programs and options that exist, links lead somewhere,
the tree in the README is the tree."""

import itertools
import re

import numpy as np
import pytest
import soundfile

from hf_entmax_asr import EntmaxAsrFeatureExtractor, EntmaxAsrProcessor
from hf_entmax_asr.tokenization import train_character_tokenizer
from hf_entmax_asr.training.recipe import load_recipe
from support.corpus_trees import write_aishell1, write_librispeech, write_wsj
from support.markdown_pages import ROOT, Block, Page, documentation
from support.small_models import small_model
from support.small_whisper import SHAPES, make_whisper
from support.tones import write_splits
from support.usages import usages

PAGES = documentation()
README = PAGES[0]
BLOCKS = [(page, block) for page in PAGES for block in page.marked("test")]
PROGRAM = re.compile(r"(?<![\w/])(?:scripts|benchmarks)/[\w/]+\.py|(?<=-m )experiments\.[\w.]+")
MOST_README_LINES = 160


def by_name(page: Page) -> str:
    return page.name


def tone(seconds: float) -> np.ndarray:
    return 0.1 * np.sin(np.arange(int(16000 * seconds)) * 0.2).astype(np.float32)


def small_processor() -> EntmaxAsrProcessor:
    return EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(), train_character_tokenizer(["one two three", "four five"]))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_python_block_is_marked(page):
    marked = [block for mark in ("test", "example") for block in page.marked(mark)]
    for language in ("python", "diff"):
        assert sum(block.language == language for block in marked) == page.count(language)


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 12
    assert all(block.language == "python" for _, block in BLOCKS)


@pytest.mark.parametrize(
    ("page", "block"), BLOCKS, ids=[f"{p.name}-{i}-{b.argument or 'alone'}" for i, (p, b) in enumerate(BLOCKS)]
)
def test_python_block_runs(page: Page, block: Block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needs, code = block.argument, block.code
    assert needs in ("", "model", "checkpoint", "corpora", "folder", "whisper")
    names: dict = {"__name__": "documentation"}
    if needs:
        processor = small_processor()
        model = small_model(vocab_size=len(processor.tokenizer), num_mel_bins=80)
        names |= {"model": model, "processor": processor, "waveform": tone(1.0)}
        names["dataset"] = [{"audio": tone(1.0), "text": "one two"}, {"audio": tone(1.5), "text": "four five"}]
    if needs == "checkpoint":
        model.save_pretrained("demo_output/run/best")
        processor.save_pretrained("demo_output/run/best")
    if needs == "whisper":
        for name, shape in (("whisper-tiny.en", "english"), ("whisper-base", "multilingual")):
            make_whisper(tmp_path / "openai" / name, **SHAPES[shape])
    if needs in ("checkpoint", "whisper"):
        soundfile.write("recording.wav", tone(1.0), 16000)
    if needs == "folder":
        write_splits(tmp_path / "my_corpus", train=2, test=2)
    if needs == "corpora":
        write_aishell1(tmp_path)
        write_wsj(tmp_path / "wsj")
        write_librispeech(tmp_path, ("train-clean-100", "dev-clean"))
        code = code.replace('"/data/', f'"{tmp_path}/').replace("num_proc=8", f"cache_dir='{tmp_path}/cache'")
    exec(compile(code, page.name, "exec"), names)


def test_what_a_model_card_says_of_its_use_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    processor = small_processor()
    small_model(vocab_size=len(processor.tokenizer), num_mel_bins=80).save_pretrained("recogniser")
    processor.save_pretrained("recogniser")
    soundfile.write("recording.wav", tone(1.0), 16000)
    card = (ROOT / "model_cards/template.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    exec(compile(code.replace("THIS_REPOSITORY", "recogniser"), "template.md", "exec"), {})


def commands() -> dict[str, list[str]]:
    """By program, every command of the documentation that starts it."""
    result: dict[str, list[str]] = {}
    for page in PAGES:
        for line in page.command_lines:
            for program in PROGRAM.findall(line):
                result.setdefault(program, []).append(line)
    return result


@pytest.fixture(scope="module")
def usage_of() -> dict[str, str]:
    return usages(commands())


@pytest.mark.parametrize("program", commands())
def test_commands_name_what_exists(program, usage_of):
    usage = usage_of[program]
    for command in commands()[program]:
        arguments = command.split(program)[1]
        for option in re.findall(r"(?<=\s)(--[a-z][\w-]*)", arguments):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", usage), f"{program} has no option {option}"
        for file in re.findall(r"scripts/(?:recipes|launch)/\S+", command):
            assert (ROOT / file).is_file()


def settings_of(program: str) -> list[list[str]]:
    """What each command of a program gives to --set, or --config."""
    groups = [re.findall(r"--(?:set|config)((?:\s+[\w.]+=\S+)+)", line) for line in commands()[program]]
    return [words.split() for group in groups for words in group]


def test_keys_of_recipes_exist():
    given = [(program, settings) for program in commands() for settings in settings_of(program)]
    assert sum(len(settings) for _, settings in given) >= 8
    for program, settings in given:
        section = "model." if program == "scripts/convert_whisper.py" else ""
        load_recipe(ROOT / "scripts/recipes/paper_base.yaml", [section + setting for setting in settings])


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_make_targets_and_extras_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    for line in page.command_lines:
        for target in re.findall(r"^make (\w+)", line):
            assert re.search(rf"^{target}:", makefile, flags=re.M), target
        for extras in re.findall(r"\.\[([\w,]+)\]", line):
            for extra in extras.split(","):
                assert re.search(rf"^{extra} =$", setup, flags=re.M), extra


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page):
    for link in page.links:
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), f"{page.name}: there is no {name}"
        if anchor:
            assert anchor in Page(str(target.relative_to(ROOT))).anchors, f"{page.name}: no heading for {link}"


def test_anchors_are_spelled_as_github_spells_them(monkeypatch):
    page = Page("made_up.md")
    text = "# α-entmax, forward + backward (`x_y.py`)\n## Twice\n## Twice\n```bash\n# no heading\n```\n"
    monkeypatch.setitem(page.__dict__, "text", text)
    assert page.anchors == {"α-entmax-forward--backward-x_ypy", "twice", "twice-1"}


def test_every_page_of_docs_is_reached_from_the_readme():
    assert {link.partition("#")[0] for link in README.links} >= {p.name for p in PAGES if p.name.startswith("docs/")}


def test_readme_is_short():
    assert len(README.text.splitlines()) <= MOST_README_LINES


def tree_paths() -> list[str]:
    """The paths that the tree in the README names, by its indentation."""
    tree = README.text.split("## The tree")[1].split("```")[1]
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent > 8:  # a line that goes on with the text of the one before
            continue
        folders = [(column, name) for column, name in folders if column < indent]
        base = "".join(name for _, name in folders)
        for name in itertools.takewhile(re.compile(r"[\w.]+(/|\.py)|src/\w+/").fullmatch, line.split()):
            paths.append(base + name)
            if name.endswith("/"):
                folders.append((indent, name))
    return paths


def test_tree_in_the_readme_is_the_tree():
    paths = tree_paths()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    package = ROOT / "src/hf_entmax_asr"
    there = [path for path in package.iterdir() if (path / "__init__.py").is_file()]
    there += [path for room in (package, package / "model") for path in room.glob("*.py") if path.stem != "__init__"]
    names = [path.relative_to(ROOT).as_posix() for path in there]
    assert [name for name in names if not {name, f"{name}/"} & set(paths)] == []
