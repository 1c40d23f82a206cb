#!/usr/bin/env python
"""Make a corpus of real, transcribed English out of packages that every Debian mirror has.

    python -m experiments.real_speech.build_corpus
    python -m experiments.real_speech.build_corpus uqm
    python -m experiments.real_speech.build_corpus drascula --deb drascula_1.0+ds4-2_all.deb --output DATA

The packages hold games that actors speak, with their subtitles:

    amazon_queen  4.5 hours, splits train, validation and test (the default)
    uqm           11 hours of other voices, many of them disguised: train, validation, test and test_other
    drascula      46 minutes, of other people, recorded badly: test

They are written as scripts/train.py takes them (one folder a split, with a metadata.csv), into a cache outside the
repository. The games may be given away free of charge; their audio is not published with this project, so that everyone
fetches it from Debian. A character is in one split only; the module of each game says who is where.

Text: upper case; letters, apostrophes and spaces only; numbers, titles and abbreviations as they are spoken. The column
raw_text has the subtitle, speaker the character, source the file of the game.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.real_speech.cache_folders import FOLDERS, default_folder


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", nargs="?", choices=FOLDERS, default="amazon_queen", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help=f"folder to write (default: {default_folder()} and the like)")
    parser.add_argument(
        "--deb", type=Path, nargs="+", help="the game's packages, in place of fetching them with apt-get"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import soundfile
from experiments.real_speech import amazon_queen_corpus, drascula_corpus, uqm_corpus
from experiments.real_speech.corpus_folder import ContainerError, CorpusError, SplitCounts, differences, write_splits
from experiments.real_speech.debian_packages import fetch, unpack
from experiments.real_speech.game import Game
from experiments.real_speech.spoken_text import UnspeakableError

GAMES = {
    "amazon_queen": amazon_queen_corpus.GAME,
    "uqm": uqm_corpus.GAME,
    "drascula": drascula_corpus.GAME,
}
MARKER = "corpus.json"  # written last; a folder that has it is whole


def build(game: Game, debs: Sequence[Path] | None, output: Path) -> dict[str, SplitCounts]:
    """Write the corpus to `output`, or nothing at all.

    Args:
        game: what to make it of.
        debs: the packages; None fetches them.

    Raises:
        CorpusError: no MP3, no package, damage, other counts than expected.
    """
    if "MP3" not in soundfile.available_formats():
        raise CorpusError(
            f"libsndfile {soundfile.__libsndfile_version__} cannot read MP3; use 1.1 or newer: pip install -U soundfile"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        tree, corpus = Path(scratch) / "package", Path(scratch) / "corpus"
        for deb in debs or [fetch(package, Path(scratch) / package.name) for package in game.packages]:
            unpack(deb, tree)
        left_out: Counter[str] = Counter()
        try:
            counts = write_splits(game.read(tree, left_out), game.expected, corpus)
        except (ContainerError, UnspeakableError) as error:
            raise CorpusError(str(error)) from error
        if wrong := differences(counts, game.expected, game.tolerance):
            raise CorpusError(f"the package does not hold what it should, so no corpus is written:\n{wrong}")
        if (tree / game.copyright).is_file():
            shutil.copy(tree / game.copyright, corpus / "copyright")
        marker = {
            "form": game.form,
            "package": game.packages[0].name,
            "splits": {name: asdict(c) for name, c in counts.items()},
            "left_out": left_out,
        }
        (corpus / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        if output.exists():  # of an older form, as main has checked
            output.rename(Path(scratch) / "old")
        corpus.rename(output)
    return counts


def finished(game: Game, output: Path) -> bool:
    """Whether the corpus is there; False where one is to be made.

    Raises:
        CorpusError: there is something else.
    """
    try:
        marker = json.loads((output / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if output.exists():
            raise CorpusError(f"{output} is there but was not made by this program; name another --output") from None
        return False
    if marker.get("package", game.packages[0].name) != game.packages[0].name:
        raise CorpusError(f"{output} holds the corpus of the package {marker['package']}; name another --output")
    return bool(marker.get("form") == game.form)


def report(output: Path) -> str:
    """What a finished corpus holds, and what was left out and why."""
    marker = json.loads((output / MARKER).read_text(encoding="utf-8"))
    lines = [f"  {name}: {SplitCounts(**counts)}" for name, counts in marker["splits"].items()]
    left_out = marker.get("left_out", {})
    if left_out:
        lines.append(f"  left out: {sum(left_out.values()):,}")
    lines += [f"    {count:,}: {reason}" for reason, count in sorted(left_out.items(), key=lambda item: -item[1])]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    game = GAMES[arguments.game]
    output = (arguments.output or default_folder(arguments.game)).absolute()
    try:
        there = finished(game, output)
        if not there:
            build(game, arguments.deb, output)
    except CorpusError as error:
        print(f"build_corpus.py: {error}", file=sys.stderr)
        return 1
    print(f"{output} ({'already there' if there else 'made'})\n{report(output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
