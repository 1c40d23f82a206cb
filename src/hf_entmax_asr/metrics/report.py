"""The errors themselves: the most frequent confusions, and an HTML page with every utterance aligned.

The page is one file without scripts, fonts or anything else from outside. It is light or dark as the reader's system
is; the three kinds of errors differ by frame and sign as well as by colours that colour-blind readers tell apart.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape

from hf_entmax_asr.metrics.errors import Edit, count_edits

NOTHING = "∅"
SPACE = "␣"
CONFUSIONS_SHOWN = 50

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #fff; --soft: #5c5c5c; --line: #cfcfcf;
  --sub: #7a3f66; --sub-back: #f6e6f0; --del: #9c3d00; --del-back: #fdebdf; --ins: #004f7d; --ins-back: #e2f0f9; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --back: #161616; --soft: #a9a9a9; --line: #454545;
  --sub: #eeb4d6; --sub-back: #3b2233; --del: #ffb07c; --del-back: #40240f; --ins: #8fd0f5; --ins-back: #10303f; } }
body { font: 16px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } th { font-weight: 600; }
article { border-top: 1px solid var(--line); padding: .5rem 0; }
article header { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.e { display: inline-flex; flex-direction: column; vertical-align: top; padding: 0 .3rem; margin: 0 .1rem .2rem;
  border-radius: .2rem; }
.e b { font-weight: 600; } .e i { font-style: normal; }
.list { max-height: 20rem; overflow: auto; }
.sub { color: var(--sub); background: var(--sub-back); border: 2px solid; }
.del { color: var(--del); background: var(--del-back); border: 2px dashed; }
.ins { color: var(--ins); background: var(--ins-back); border: 2px dotted; }
.del b { text-decoration: line-through; } .ins b::before { content: "+"; }
"""
LEGEND = (
    "<p>The reference reads along the upper line, what was recognised along the lower: "
    '<span class="e sub"><i>said</i><b>heard</b></span> substitution, '
    f'<span class="e del"><b>said</b><i>{NOTHING}</i></span> deletion, '
    f'<span class="e ins"><i>{NOTHING}</i><b>heard</b></span> insertion.</p>'
)


def confusions(alignments: Sequence[Sequence[Edit]], most: int | None = None) -> list[tuple[Edit, int]]:
    """The errors and how often each occurs, most frequent first (then by text); all of them, or the `most` first."""
    counted = Counter(edit for edits in alignments for edit in edits if edit.kind != "hit")
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0].reference or "", item[0].hypothesis or ""))
    return ordered[:most]


def html_report(
    title: str,
    summary: Sequence[tuple[str, str]],
    ids: Sequence[str],
    alignments: Sequence[Sequence[Edit]],
    unit: str = "word",
) -> str:
    """The page: summary, confusions, utterances with errors (most errors first), utterances without.

    Args:
        title: heading, as plain text (everything is escaped here).
        summary: (name, value) lines.
        ids, alignments: of the utterances, in the same order; alignments as `align` gives them.
        unit: that the alignments are of.

    Raises:
        ValueError: not one id for each alignment.
    """
    if len(ids) != len(alignments):
        raise ValueError(f"{len(ids)} ids for {len(alignments)} alignments: give one for each")
    gap = " " if unit == "word" else ""
    utterances = list(zip(ids, alignments, strict=True))
    wrong = [item for item in utterances if any(edit.kind != "hit" for edit in item[1])]
    right = [item for item in utterances if all(edit.kind == "hit" for edit in item[1])]
    wrong.sort(key=lambda item: -count_edits(item[1]).errors)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        "<table>",
        *(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in summary),
        "</table>",
        *_confusion_table(alignments),
        f"<h2>{len(wrong):,} utterances with errors, most errors first</h2>",
        LEGEND,
        *(_utterance(name, edits, gap) for name, edits in wrong),
        f"<h2>{len(right):,} utterances without errors</h2>",
        "<details><summary>Show them</summary>",
        *(_utterance(name, edits, gap) for name, edits in right),
        "</details></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _confusion_table(alignments: Sequence[Sequence[Edit]]) -> list[str]:
    listed = confusions(alignments, CONFUSIONS_SHOWN)
    if not listed:
        return []
    rows = (
        f'<tr><td class="n">{count:,}</td><td>{_shown(edit.reference)}</td><td>{_shown(edit.hypothesis)}</td>'
        f"<td>{edit.kind}</td></tr>"
        for edit, count in listed
    )
    return [
        "<h2>Most frequent confusions</h2>",
        '<div class="list"><table><tr><th>times</th><th>said</th><th>heard</th><th>kind</th></tr>',
        *rows,
        "</table></div>",
    ]


def _utterance(name: str, edits: Sequence[Edit], gap: str) -> str:
    counts = count_edits(edits)
    errors = f"{counts.substitutions} sub, {counts.deletions} del, {counts.insertions} ins" if counts.errors else "✓"
    line = gap.join(map(_column, edits))
    return f'<article><header>{escape(name)} · {errors}</header><div dir="auto">{line}</div></article>'


def _column(edit: Edit) -> str:
    if edit.kind == "hit":
        return escape(edit.reference or "")
    said, heard = _shown(edit.reference), _shown(edit.hypothesis)
    upper, lower = ("b", "i") if edit.kind == "deletion" else ("i", "b")
    return (
        f'<span class="e {edit.kind[:3]}" title="{edit.kind}">'
        f"<{upper}>{said}</{upper}><{lower}>{heard}</{lower}></span>"
    )


def _shown(unit: str | None) -> str:
    return NOTHING if unit is None else escape(unit).replace(" ", SPACE)
