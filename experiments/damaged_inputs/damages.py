"""Ways to damage any file: what stands in its place, its bytes, its lines, its numbers, and the values of a tree in it.

A damage changes the file at a path, with random choices, and tells what it did, and whether the input is now surely
broken: no reader may take it for a good one. What may still be good, nobody need refuse.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml


class Done(NamedTuple):
    """What was done to an input."""

    what: str
    broken: bool = False


Damage = Callable[[Path, Random], Done]

LONG_LINE = 10_000_000
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
WRONG_NUMBERS = ("nan", "inf", "-inf", "-1", "1e30", "x", "-0.5", "1e999", "12345678901234567890", "0x10", "")
WRONG_VALUES: tuple[Any, ...] = (
    *(None, True, "text", "", -1, 0, 0.5, 1e30, 10**30, math.nan, math.inf, -math.inf, [], {}, [1, 2], {"a": 1}),
    *(["text", None], "x" * 3000, "../../../../etc/passwd", "nul\x00inside", "\ud800", [[[[]]]], 2**31, -(2**63)),
)


def _replace(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def place(path: Path, draw: Random) -> Done:
    """Something else, or nothing, where the file was."""
    kind = draw.choice(("nothing", "folder", "named pipe", "dangling link", "loop of links", "/dev/null", "/dev/zero"))
    _replace(path)
    if kind == "folder":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        path.symlink_to({"dangling link": "nowhere", "loop of links": path.name}.get(kind, kind))
    return Done(kind, broken=True)


def cut(path: Path, draw: Random) -> Done:
    content = path.read_bytes()
    kept = draw.choice((0, 1, len(content) - 1, draw.randrange(len(content)), draw.randrange(len(content))))
    path.write_bytes(content[:kept])
    return Done(f"cut to {kept} of {len(content)} bytes", broken=kept == 0)


def flip_bits(path: Path, draw: Random) -> Done:
    content = bytearray(path.read_bytes())
    places = sorted(draw.randrange(len(content)) for _ in range(draw.choice((1, 1, 3, 30))))
    if draw.random() < 0.3:  # where headers stand
        places = [place % min(200, len(content)) for place in places]
    for at in places:
        content[at] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return Done(f"bits flipped at {', '.join(map(str, places[:5]))}")


def overwrite(path: Path, draw: Random) -> Done:
    content = path.read_bytes()
    first = draw.randrange(len(content))
    length = draw.choice((1, 8, 100, len(content)))
    block = content[first : first + length]
    kind = draw.choice(("zeroed", "random", "doubled", "removed", "0xff"))
    new = {"zeroed": bytes(len(block)), "random": draw.randbytes(len(block)), "doubled": 2 * block, "removed": b""}
    path.write_bytes(content[:first] + new.get(kind, b"\xff" * len(block)) + content[first + length :])
    return Done(f"{len(block)} bytes from {first} {kind}")


def replace_all(path: Path, draw: Random) -> Done:
    kind = draw.choice(("random bytes", "zeros", "a PNG", "white space", "garbage behind"))
    size = draw.choice((1, 100, 10_000))
    new = {"random bytes": draw.randbytes(size), "zeros": bytes(size), "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(size)}
    if kind == "garbage behind":
        new[kind] = path.read_bytes() + draw.randbytes(size)
    path.write_bytes(new.get(kind, b" \n" * size))
    maybe_good = kind == "garbage behind" or (kind == "random bytes" and size == 1)
    return Done(f"{kind}, {size}", broken=not maybe_good)


def encoding(path: Path, draw: Random) -> Done:
    """Other encodings of the text, and bytes that no UTF-8 has."""
    text = path.read_text(encoding="utf-8")
    kind = draw.choice(("utf-16", "utf-32", "byte order mark", "cp1252 letter", "NUL", "surrogate", "CRLF", "CR"))
    at = draw.randrange(len(text))
    inserted = {"cp1252 letter": b"\xe9", "NUL": b"\0", "surrogate": b"\xed\xa0\x80"}
    if kind in inserted:
        content = text[:at].encode() + inserted[kind] + text[at:].encode()
    elif kind in ("CRLF", "CR"):
        content = text.replace("\n", "\r\n" if kind == "CRLF" else "\r").encode()
    else:
        content = text.encode("utf-8-sig" if kind == "byte order mark" else kind)
    path.write_bytes(content)
    return Done(f"{kind}{f' at {at}' if kind in inserted else ''}")


def lines(path: Path, draw: Random) -> Done:
    """Lines gone, twice, swapped, cut, very long."""
    rows = path.read_text(encoding="utf-8").split("\n")
    at, other = draw.randrange(len(rows)), draw.randrange(len(rows))
    kind = draw.choice(("gone", "doubled", "swapped", "cut", "joined", "10 MB put in", "10 MB of brackets", "blank"))
    if kind == "swapped":
        rows[at], rows[other] = rows[other], rows[at]
    elif kind == "cut":
        rows[at] = rows[at][: draw.randrange(len(rows[at]) + 1)]
    else:
        new = {"doubled": [rows[at], rows[at]], "10 MB put in": [rows[at], "x" * LONG_LINE], "blank": [rows[at], " "]}
        new |= {"10 MB of brackets": ["[" * LONG_LINE], "joined": [rows[at] + rows[at - 1]]}
        rows[at : at + 1] = new.get(kind, [])
    path.write_text("\n".join(rows), encoding="utf-8")
    return Done(f"line {at + 1} {kind}")


def numbers(path: Path, draw: Random) -> Done:
    """A number of a text replaced by another, or by none."""
    text = path.read_text(encoding="utf-8")
    found = draw.choice(list(NUMBER.finditer(text)))
    new = draw.choice(WRONG_NUMBERS)
    path.write_text(text[: found.start()] + new + text[found.end() :], encoding="utf-8")
    line = text.count("\n", 0, found.start()) + 1
    is_value = "." in found.group() or text[: found.start()].rstrip().endswith("=")  # and no name
    broken = is_value and new in ("nan", "inf", "-inf", "x", "1e999")
    return Done(f"line {line}: {found.group()} became {new!r}", broken)


def fields(path: Path, draw: Random) -> Done:
    """A field of a line gone, doubled, or replaced by an odd one."""
    rows = path.read_text(encoding="utf-8").split("\n")
    at = draw.choice([i for i, row in enumerate(rows) if row.split()])
    words = re.split(r"(\s+|,)", rows[at])
    which = draw.randrange(len(words))
    new = draw.choice(("", words[which] * 2, "é中", '"', "\\", ",", "\t", "\u2028", "../x", "-"))
    rows[at] = "".join([*words[:which], new, *words[which + 1 :]])
    path.write_text("\n".join(rows), encoding="utf-8")
    return Done(f"line {at + 1}: {words[which]!r} became {new!r}")


def _paths(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values; of a long list or table a few."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = [above] if above else []
    for key, value in list(inside)[:60]:
        found += _paths(value, (*above, key))
    return found


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, (str, list, dict)):
        return type(value).__name__
    return "number"


def change_tree(tree: Any, draw: Random, free: tuple[str, ...]) -> tuple[Any, Done]:
    """One value of a tree made another, taken away, or put under another name. Under the `free` keys all is allowed."""
    path = draw.choice(_paths(tree))
    where = ".".join(map(str, path))[:100]
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    old, is_free = inner[path[-1]], not set(map(str, path)).isdisjoint(free)
    kind = draw.choice(("other value",) * 6 + ("gone", "renamed", "all replaced"))
    if kind == "all replaced":
        new = draw.choice(WRONG_VALUES)
        return new, Done(f"all became {new!r:.40}", broken=not isinstance(new, dict))
    if kind == "gone" or (kind == "renamed" and isinstance(inner, list)):
        del inner[path[-1]]
        return tree, Done(f"{where} gone")
    if kind == "renamed":
        inner[f"{path[-1]}_"] = inner.pop(path[-1])
        return tree, Done(f"{where} renamed")
    new = draw.choice(WRONG_VALUES)
    inner[path[-1]] = new
    other_kind = old is not None and new is not None and _kind(new) != _kind(old)
    no_number = isinstance(new, float) and not math.isfinite(new)
    no_integer = type(old) is int and new == 0.5
    return tree, Done(
        f"{where}: {old!r:.40} became {new!r:.40}", not is_free and (other_kind or no_number or no_integer)
    )


def json_values(*free: str) -> Damage:
    """Values of a JSON file."""

    def damage(path: Path, draw: Random) -> Done:
        tree, done = change_tree(json.loads(path.read_text(encoding="utf-8")), draw, free)
        path.write_text(json.dumps(tree), encoding="utf-8")
        return done

    return damage


def json_lines(*free: str) -> Damage:
    """Values of one line of a file of JSON lines."""

    def damage(path: Path, draw: Random) -> Done:
        rows = path.read_text(encoding="utf-8").splitlines()
        at = draw.randrange(len(rows))
        tree, done = change_tree(json.loads(rows[at]), draw, free)
        rows[at] = json.dumps(tree)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return Done(f"line {at + 1}, {done.what}", done.broken)

    return damage


def yaml_values(*free: str) -> Damage:
    """Values of a YAML file."""

    def damage(path: Path, draw: Random) -> Done:
        tree, done = change_tree(yaml.safe_load(path.read_text(encoding="utf-8")), draw, free)
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return done

    return damage


BYTES: tuple[Damage, ...] = (place, cut, flip_bits, overwrite, replace_all)
TEXT: tuple[Damage, ...] = (place, cut, flip_bits, overwrite, replace_all, encoding, lines)
