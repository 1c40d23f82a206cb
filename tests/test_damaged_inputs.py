"""The program that damages inputs: cases that can be drawn again, outcomes told apart, a run over two kinds."""

from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest
import torch
from experiments.damaged_inputs import damages, formats, trials
from experiments.damaged_inputs.__main__ import Bench, main, table
from experiments.damaged_inputs.good_inputs import write_results
from experiments.damaged_inputs.kinds import KINDS
from experiments.damaged_inputs.trials import Ran, judge
from safetensors.torch import load_file, save_file

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py"\nKeyError: 1\n'


@pytest.mark.parametrize(
    ("ran", "broken", "untouched", "outcome"),
    [
        (Ran(0, "done", "", 0.1), False, False, trials.ACCEPTED),
        (Ran(0, "done", "", 0.1), True, True, trials.SILENT),
        (Ran(1, "", "a warning\nx.py: a.json is damaged\n", 0.1), True, True, trials.REFUSED),
        (Ran(1, "", "x.py: a.json is damaged\n", 0.1), True, False, trials.HALF),
        (Ran(1, "", "x.py: something is damaged\n", 0.1), True, True, trials.UNCLEAR),
        (Ran(1, "", "", 0.1), True, True, trials.UNCLEAR),
        (Ran(1, "", TRACEBACK, 0.1), True, True, trials.TRACEBACK),
        (Ran(-11, "", "", 0.1), True, True, trials.KILLED),
        (Ran(None, "", "", 9.0), True, True, trials.HANG),
    ],
)
def test_outcomes(ran, broken, untouched, outcome):
    assert judge(ran, ("a.json",), broken, untouched) == outcome


def test_an_unknown_kind_is_answered_with_those_there_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["damaged_inputs", "--kinds", "config.json", "riddle"])
    assert main() == 2
    assert "no kind 'riddle'; there are config.json, " in capsys.readouterr().err


def test_a_case_is_drawn_from_its_number(tmp_path):
    texts = []
    for _ in range(2):
        (tmp_path / "a.json").write_text('{"a": [1, 2], "b": {"c": 0.5}}', encoding="utf-8")
        done = damages.json_values()(tmp_path / "a.json", Random("a 3"))
        texts.append((done, (tmp_path / "a.json").read_bytes()))
    assert texts[0] == texts[1]


def test_damage_that_readers_must_find_is_known(tmp_path):
    def of(old, new, free=()):
        draw = SimpleNamespace(choice=lambda values: new if values is damages.WRONG_VALUES else values[0])
        return damages.change_tree({"a": old}, draw, free)[1].broken

    assert of(1, 0.5)
    assert of(0.5, float("nan"))
    assert of("text", [])
    assert not of(0.5, 1)
    assert not of(None, "text")
    assert not of("text", [], free=("a",))
    file = tmp_path / "w.safetensors"
    for number in range(20):
        save_file({"w": torch.ones(3, 2)}, file)
        done = formats.tensors(file, Random(number))
        assert done.broken or all(t.isfinite().all() for t in load_file(file).values())


def test_programs_refuse_what_is_damaged(tmp_path):
    """The two kinds that need neither a model nor a corpus; all kinds are run by hand."""
    bench = Bench(tmp_path, 30.0, lambda root, _: write_results(root), last="first.jsonl")
    for name in ("results of evaluate.py", "spelling table"):
        assert bench.try_case(KINDS[name], -1)[0] == trials.ACCEPTED
        outcomes = {number: bench.try_case(KINDS[name], number) for number in range(10)}
        bad = {number: tried for number, tried in outcomes.items() if tried[0] in trials.BAD}
        assert not bad
        assert any(outcome == trials.REFUSED for outcome, _, _ in outcomes.values())


def test_the_table_leaves_out_what_did_not_happen():
    text = table({"a": Counter({trials.ACCEPTED: 2}), "b": Counter({trials.HANG: 1})})
    assert text.splitlines()[0] == "| kind | cases | accepted | refused well | hang |"
    assert text.splitlines()[-1] == "| all | 3 | 2 | 0 | 1 |"
