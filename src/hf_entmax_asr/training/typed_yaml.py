"""Plain data, as YAML gives it, into typed dataclasses: unknown keys, wrong types and malformed files are refused."""

import dataclasses
import difflib
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from hf_entmax_asr.error_messages import described, in_one_line
from hf_entmax_asr.input_files import InputFileError, check_regular


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key, the value and the fix."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2e-3 as a string because it lacks a dot; here it is a number. It reads 2:30:00 as one in base 60;
    here that is refused. A key that is there twice, of which YAML takes the last without a word, is refused, and so are
    references (*name), of which a few lines can make billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"line {mark.line + 1}: references (*name) are not taken; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} is there twice")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        if ":" in node.value:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {node.value} is a number in base 60; write it in base 10")
        is_int = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _Loader.construct_number)

LARGEST_RECIPE = 2**20  # bytes

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


# Numbers and dates that are none, bytes that are not UTF-8 and mappings as keys raise other errors than YAML's own.
_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError)


def read_tree(file: Path, overrides: typing.Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file of nested mappings, with `section.key=value` strings (value in YAML) applied after it.

    Raises:
        RecipeError: the file is missing or malformed, or an override is.
    """
    if not file.exists():
        raise RecipeError(f"there is no recipe at {file}; scripts/recipes/ has some to start from")
    try:
        check_regular(file)
        if file.stat().st_size > LARGEST_RECIPE:
            raise RecipeError(f"{file} has {file.stat().st_size:,} bytes; a recipe has at most {LARGEST_RECIPE:,}")
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except RecipeError:
        raise
    except (OSError, InputFileError) as error:
        raise RecipeError(described(error)) from error
    except _NOT_YAML as error:
        raise RecipeError(f"{file} is not valid YAML: {in_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{file} must hold a mapping of sections, not a {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set takes section.key=value, got {override!r}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML: {in_one_line(error)}") from error
    *sections, leaf = key.strip().split(".")
    for section in sections:
        if not isinstance(tree.setdefault(section, {}), dict):
            tree[section] = {}
        tree = tree[section]
    tree[leaf] = value


def build(cls: Any, tree: Any, where: str) -> Any:
    """Instantiate the dataclass `cls` from plain data; `where` is the key's path, for messages."""
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise RecipeError(f"{where or 'a recipe'} must be a mapping, got {tree!r}")
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in hints:
            raise RecipeError(unknown_key(f"{where}.{key}" if where else str(key), str(key), hints))
    values = {key: _typed(value, hints[key], f"{where}.{key}" if where else key) for key, value in tree.items()}
    return cls(**values)


def check_finite(tree: Any, where: str = "a recipe") -> None:
    """RecipeError for a number that is infinite or none, at any depth: comparisons with limits would let it pass."""
    if isinstance(tree, float) and not math.isfinite(tree):
        raise RecipeError(f"{where} is {tree}; it must be a finite number")
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        check_finite(value, str(key) if where == "a recipe" else f"{where}.{key}")


def unknown_key(path: str, key: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(sorted(known))
    return f"unknown recipe key {path!r}; {hint}"


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type; an int is taken where a float stands, nothing else is converted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _typed(value, next(a for a in arguments if a is not type(None)), where)
    if origin is Literal:
        if value in arguments:
            return value
        raise RecipeError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, arguments))}")
    if origin is tuple and Ellipsis in arguments:
        if isinstance(value, list | tuple):
            return tuple(_typed(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
        raise RecipeError(f"{where} is {value!r}; it must be a list")
    if origin is tuple:
        if isinstance(value, list | tuple) and len(value) == len(arguments):
            return tuple(_typed(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))
        raise RecipeError(f"{where} is {value!r}; it must be a list of {len(arguments)} numbers")
    if origin is dict:
        return _build_free(value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise RecipeError(f"{where} is {value!r}; it must be of type {hint.__name__}")


def _build_free(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RecipeError(f"{where} must be a mapping, got {value!r}")
    return dict(value)
