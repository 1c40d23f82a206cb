#!/usr/bin/env python
"""Test whether two systems differ, from what they recognised on the same utterances.

    python scripts/evaluate.py runs/a/best DATA --output a.jsonl
    python scripts/evaluate.py runs/b/best DATA --output b.jsonl
    python scripts/compare.py a.jsonl b.jsonl

Printed are the errors of both; their difference with its interval from the paired bootstrap (Bisani & Ney 2004), and
the share of samples in which the first is better; and the matched-pair test over segments of sentences (MAPSSWE,
Gillick & Cox 1989), the test that NIST used.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from program_options import text_rules


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="JSON lines with id, reference and hypothesis")
    parser.add_argument("second", type=Path, help="the same utterances by another system")
    parser.add_argument("--unit", choices=("word", "character"), default="word", help="of the errors (default: word)")
    parser.add_argument("--normalization", choices=text_rules(), default="none", help="rule for the texts")
    parser.add_argument("--spelling-table", type=Path, help="for --normalization english: Whisper's normalizer.json")
    parser.add_argument("--level", type=float, default=0.95, help="confidence of the interval (default: 0.95)")
    arguments = parser.parse_args()
    if not 0 < arguments.level < 1:
        parser.error(f"--level is {arguments.level}; it must lie between 0 and 1")
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

from hf_entmax_asr.corpora import text_rule
from hf_entmax_asr.error_messages import described, reports_errors
from hf_entmax_asr.input_files import read_text
from hf_entmax_asr.metrics import align, bootstrap_difference, count_edits, error_counts, error_segments, matched_pairs

NAMES_SHOWN = 5

Results = dict[str, tuple[str, str]]  # (reference, hypothesis) of each utterance, by its id


class ResultError(ValueError):
    """Result files that cannot be compared."""


def read_results(path: Path) -> Results:
    results: Results = {}
    lines = read_text(path).removesuffix("\n").split("\n")  # splitlines would cut texts at U+2028
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            name, texts = record["id"], (record["reference"], record["hypothesis"])
            if not all(isinstance(text, str) for text in (name, *texts)):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{path}, line {number}: not a JSON object with id, reference and hypothesis"
            raise ResultError(message) from error
        if name in results:
            raise ResultError(f"{path}, line {number}: the id {name!r} is there twice")
        results[name] = texts
    return results


def check_same(first: Results, second: Results, paths: tuple[Path, Path]) -> None:
    for present, absent, (where, other) in ((first, second, paths), (second, first, paths[::-1])):
        missing = [name for name in present if name not in absent]
        if missing:
            names = ", ".join(map(str, missing[:NAMES_SHOWN]))
            raise ResultError(f"{len(missing)} utterances of {where} are not in {other}: {names} …")
    differing = [name for name in first if first[name][0] != second[name][0]]
    if differing:
        names = ", ".join(map(str, differing[:NAMES_SHOWN]))
        raise ResultError(f"{len(differing)} utterances have different references in the two files: {names} …")


def words_in(texts: Iterable[str]) -> int:
    return sum(len(text.split()) for text in texts)


def compare(arguments: argparse.Namespace) -> list[str]:
    """The lines to print."""
    rule = text_rule(arguments.normalization, arguments.spelling_table)
    first, second = (read_results(path) for path in (arguments.first, arguments.second))
    check_same(first, second, (arguments.first, arguments.second))
    references = [rule(reference) for reference, _ in first.values()]
    heard = [[rule(results[name][1]) for name in first] for results in (first, second)]
    a, b = (align(references, texts, arguments.unit) for texts in heard)
    lines = [
        f"{path}: {error_counts(references, texts, arguments.unit)}"
        for path, texts in zip((arguments.first, arguments.second), heard, strict=True)
    ]
    if rule.name != "none":
        lines.append(f"(normalised by the rule {rule.name!r}: {rule.description})")
        recounted = rule.recounted(words_in(reference for reference, _ in first.values()), words_in(references))
        if recounted and arguments.unit == "word":
            lines.append(f"({recounted})")
    errors_a, errors_b = ([count_edits(edits).errors for edits in side] for side in (a, b))
    lengths = [count_edits(edits).reference_length for edits in a]
    difference = bootstrap_difference(errors_a, errors_b, lengths, level=arguments.level)
    lines.append(
        f"First minus second: {100 * difference.difference:+.2f} points, "
        f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}] with {100 * arguments.level:g} % confidence "
        f"(paired bootstrap over {len(first)} utterances); the first is better in "
        f"{100 * difference.probability_of_improvement:.1f} % of the samples"
    )
    test = matched_pairs([pair for edits in zip(a, b, strict=True) for pair in error_segments(*edits)])
    verdict = "they differ" if test.p_value < 0.05 else "no difference is shown"
    lines.append(
        f"Matched pairs (MAPSSWE): {test.segments} segments, W = {test.statistic:.3f}, p = {test.p_value:.3g}: "
        f"{verdict} at the 5 % level"
    )
    if test.caution is not None:
        lines.append(f"Caution: {test.caution}")
    return lines


@reports_errors("compare.py")
def main() -> int:
    try:
        lines = compare(parse())
    except (ValueError, FileNotFoundError) as error:
        print(f"compare.py: {described(error)}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
