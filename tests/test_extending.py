"""The worked examples of docs/extending.md do what the page says: their diffs fit the sources as they are and touch few
files, and what they add works."""

import pytest

from support.markdown_pages import Page
from support.worked_examples import WorkedExample, changed_lines, worked_examples

EXAMPLES = worked_examples(Page("docs/extending.md"))
MOST_FILES = 3
REGISTRATION = 1  # lines that make a corpus known


def by_name(example: WorkedExample) -> str:
    return example.name.replace(" ", "-")


@pytest.fixture(params=EXAMPLES, ids=by_name)
def example(request) -> WorkedExample:
    return request.param


def test_the_three_changes_are_there():
    assert [example.name for example in EXAMPLES] == ["transform", "relative positions", "corpus"]


def test_example_touches_few_files_and_runs(example, tmp_path):
    source = example.apply(tmp_path)
    changed = changed_lines(source)
    new = [name for name, lines in changed.items() if lines is None]
    if example.name == "corpus":
        assert len(new) == 1
        assert [lines for lines in changed.values() if lines is not None] == [REGISTRATION]
    else:
        assert 1 <= len(changed) <= MOST_FILES
    assert example.run(source, tmp_path).strip()
