"""Damage that only one format knows: tensors, tables, recipes, recordings."""

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import torch
import yaml
from experiments.damaged_inputs.damages import Damage, Done
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_BIG_HEADER = 1 << 40


def _entry(value: float) -> Callable[[Tensor], Tensor]:
    def put(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[: max(1, tensor.numel() // 50)] = value
        return tensor

    return put


_TENSORS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {  # what is done, and whether that is surely broken
    "a NaN": (_entry(torch.nan), True),
    "infinite": (_entry(torch.inf), True),
    "1e30": (_entry(1e30), False),
    "zeros": (torch.zeros_like, False),
    "transposed and flat": (lambda t: t.reshape(-1, 1), True),
    "one row more": (lambda t: torch.cat([t, t[:1]]) if t.dim() else t.repeat(2), True),
    "no rows": (lambda t: t[:0] if t.dim() else t.new_zeros(0), True),
    "int8": (lambda t: t.to(torch.int8), True),
    "int64": (lambda t: t.to(torch.int64), True),
    "bool": (lambda t: t > 0, True),
    "float64": (lambda t: t.double(), False),
    "bfloat16": (lambda t: t.bfloat16(), False),
}


def tensors(path: Path, draw: Random) -> Done:
    """A tensor of a safetensors file changed, gone, renamed, or one more."""
    found = load_file(path)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    name = draw.choice(sorted(found))
    kind = draw.choice((*_TENSORS, "gone", "renamed", "one more", "none at all", "no metadata"))
    broken = kind not in ("no metadata", "one more")
    if kind in _TENSORS:
        change, broken = _TENSORS[kind]
        try:
            found[name] = change(found[name])
        except (TypeError, RuntimeError):  # of random states, which are bytes
            found[name] = found[name][1:]
            broken = True
        if found[name].dtype == torch.uint8 and kind == "transposed and flat":  # bytes in another shape are the same
            broken = False
    elif kind in ("gone", "renamed"):
        tensor = found.pop(name)
        found |= {f"{name}_": tensor} if kind == "renamed" else {}
    elif kind == "one more":
        found["more"] = torch.zeros(3)
    elif kind == "none at all":
        found = {}
    save_file({n: t.contiguous() for n, t in found.items()}, path, metadata=None if kind == "no metadata" else metadata)
    return Done(f"{name}: {kind}", broken)


def tensor_header(path: Path, draw: Random) -> Done:
    """The header of a safetensors file: its length, its JSON, its offsets."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length].decode(), content[8 + length :]
    kind = draw.choice(("length", "huge length", "offset", "shape", "type"))
    if kind in ("length", "huge length"):
        new = length + draw.choice((-1, 1, 100)) if kind == "length" else draw.choice((_BIG_HEADER, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", new) + content[8:])
        return Done(f"{kind} {new}", broken=True)
    old, new_text = {
        "offset": ('data_offsets":[', 'data_offsets":[9'),
        "shape": ('shape":[', 'shape":[9'),
        "type": ("F32", draw.choice(("F64", "X99", "I32", "F16"))),
    }[kind]
    before, found, behind = header.partition(old)
    changed = (before + (new_text if found else old) + behind).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + data)
    return Done(f"{kind} {new_text}", broken=bool(found) and new_text != "I32")


_ROWS = {
    "a comma more": (lambda row: f"{row},more", True),
    "fields missing": (lambda row: row.split(",")[0], True),
    "no file name": (lambda row: "," + row.partition(",")[2], True),
    "a file that is not there": (lambda row: f"none{row}", True),
    "a file above": (lambda row: f"../../{row}", True),
    "no text": (lambda row: f"{row.split(',')[0]},,s", False),
    "an open quote": (lambda row: row.replace(",", ',"', 1), True),
    "a NUL": (lambda row: row.replace(",", ",a\0b ", 1), True),
    "a field of 200,000": (lambda row: f"{row.split(',')[0]},{'bed ' * 50_000},s", True),
    "semicolons": (lambda row: row.replace(",", ";"), True),
    "letters never heard": (lambda row: f"{row.split(',')[0]},中 é,s", False),
    "the same file twice": (lambda row: f"{row}\n{row}", True),
}
_HEADERS = {
    "no header": "",
    "other names": "a,b,c\n",
    "a name twice": "file_name,text,text\n",
    "capitals": "File_Name,Text,Speaker\n",
    "a column without a name": "file_name,text,\n",
}


def table(path: Path, draw: Random) -> Done:
    """The header or a row of metadata.csv."""
    header, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if draw.random() < 0.25:
        kind = draw.choice((*_HEADERS, "no rows"))
        path.write_text(header if kind == "no rows" else _HEADERS[kind] + "".join(rows), encoding="utf-8")
        return Done(kind, broken=kind != "a column without a name")
    at, kind = draw.randrange(len(rows)), draw.choice(tuple(_ROWS))
    change, broken = _ROWS[kind]
    rows[at] = change(rows[at].rstrip("\r\n")) + "\n"
    path.write_text(header + "".join(rows), encoding="utf-8")
    return Done(f"row {at + 1}: {kind}", broken)


_YAML = {
    "a section twice": lambda text: text + "\n" + text,
    "a bomb of references": lambda text: (
        text + "\nz0: &z0 [x, x]\n" + "".join(f"z{i}: &z{i} [*z{i - 1}, *z{i - 1}]\n" for i in range(1, 40))
    ),
    "a reference to itself": lambda text: text + "\nz: &z [*z]\n",
    "an object of Python": lambda text: text + "\nz: !!python/object/apply:os.getcwd []\n",
    "a tab": lambda text: text.replace("  ", "\t", 1),
    "two documents": lambda text: text + "\n---\n" + text,
    "deep nesting": lambda text: text + "\nz: " + "[" * 20_000,
    "a date": lambda text: text.replace("max_steps: 2", "max_steps: 2026-01-01"),
    "base 60": lambda text: text.replace("max_steps: 2", "max_steps: 2:30:00"),
    "another section": lambda text: text + "\nsection: {a: 1}\n",
}


def recipe(path: Path, draw: Random) -> Done:
    """What YAML allows and a recipe does not."""
    kind = draw.choice(tuple(_YAML))
    path.write_text(_YAML[kind](path.read_text(encoding="utf-8")), encoding="utf-8")
    return Done(kind, broken=True)


_SIZES = ("d_model", "encoder_layers", "encoder_ffn_dim", "subsampling_channels", "feature_size", "frames_per_batch")
_OTHERS = ("dropout", "warmup_steps", "max_steps", "peak_learning_rate", "time_mask_frames", "label_smoothing", "seed")


def recipe_numbers(path: Path, draw: Random) -> Done:
    """A number of a recipe that nobody can mean."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    homes = {name: section for section, names in tree.items() if isinstance(names, dict) for name in names}
    name = draw.choice([n for n in (*_SIZES, *_OTHERS) if n in homes])
    value = draw.choice((-1, float("nan"), float("inf"), 10**9, 10**18, -0.5, "many", 1e-320))
    tree[homes[name]][name] = value
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return Done(f"{homes[name]}.{name} = {value}", broken=not (name == "max_steps" and value in (10**9, 10**18)))


_OF_FRACTIONS = ("WAV", "AIFF", "AU")


def recordings(form: str) -> Damage:
    """A recording with numbers that none has, written in this form, or with a header that says other things."""

    def damage(path: Path, draw: Random) -> Done:
        kind = draw.choice(("no samples", "one sample", "1 Hz", "many channels", "NaN", "header", "header", "header"))
        if kind == "NaN" and form not in _OF_FRACTIONS:
            kind = "one sample"
        audio, rate = soundfile.read(path)
        subtype = "FLOAT" if kind == "NaN" else None
        if kind in ("no samples", "one sample"):
            audio = audio[: kind == "one sample"]
        elif kind == "1 Hz":
            rate = 1
        elif kind == "many channels":
            audio = np.repeat(audio[:100, None], 8, axis=1)
        elif kind == "NaN":
            audio[5] = np.nan
        else:
            content = bytearray(path.read_bytes())
            at = draw.randrange(4, 1000 if form == "NIST" else 44)
            size = draw.choice((1, 2, 4))
            content[at : at + size] = draw.choice((b"\0", b"\xff", b"\x7f", b"9"))[:1] * size
            path.write_bytes(content)
            return Done(f"header: {size} bytes at {at}")
        try:
            soundfile.write(path, audio, rate, format=form, subtype=subtype)
        except (soundfile.LibsndfileError, ValueError, AssertionError) as error:  # that form cannot hold it
            path.write_bytes(b"")
            return Done(f"{kind}: empty, for {error}", broken=True)
        return Done(kind, broken=kind == "no samples" or subtype is not None)

    return damage
