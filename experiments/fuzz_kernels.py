#!/usr/bin/env python
"""The native forms against the eager ones on random shapes, masks and layouts, with all gradients.

    python -m experiments.fuzz_kernels --cases 10000 --functions expected_soft_attention entmax

Each case is drawn from its own number, so that one that differs can be run again: --first NUMBER --cases 1. The native
form computes in float32 (or as many bits as it was given), the eager form, the specification, on the same numbers in
float64; where these differ, in float32 too, which of scores of 1e20 has no digit behind the point: the native form may
be as near to that, or twice as far from the exact one as that is. Prints every case that differs by more than rounding,
and the largest difference of each function; the exit status says whether there was one.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FUNCTIONS = ("entmax", "entmax_attention", "expected_alignment", "expected_soft_attention", "hard_reading")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of each function (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: %(default)s)")
    parser.add_argument(
        "--functions", nargs="+", choices=FUNCTIONS, default=FUNCTIONS, metavar="FUNCTION", help="which"
    )
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import torch
from torch import Tensor

from hf_entmax_asr import kernels
from hf_entmax_asr.kernels import backend
from hf_entmax_asr.model.alignment import expected_alignment, expected_soft_attention
from hf_entmax_asr.model.chunks import Chunks
from hf_entmax_asr.model.entmax import entmax
from hf_entmax_asr.model.entmax_attention import entmax_attention
from hf_entmax_asr.model.reading import hard_reading

LONGEST = 40
SMALL = 100  # scores up to here have digits enough in float32
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the largest entry
BORDER = 1e-5  # a weight up to here may be 0 in the other form; its gradient is then another one


@dataclass
class Case:
    """A call: arguments by name, those of them that have a gradient, and whether the results are exact."""

    call: Callable[..., Any]
    arguments: dict[str, Any]
    with_gradient: tuple[str, ...]
    dtype: torch.dtype = torch.float32


class Draw:
    """Random parts of a case."""

    def __init__(self, number: int) -> None:
        self.generator = torch.Generator().manual_seed(number)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def one_of(self, *values: Any) -> Any:
        return values[self.integer(0, len(values) - 1)]

    def size(self, high: int) -> int:
        """Mostly small, sometimes 0."""
        return self.one_of(0, 1, 2, self.integer(1, high), self.integer(1, high), self.integer(1, high), high)

    def normal(self, *shape: int) -> Tensor:
        """Of any spread; sometimes with equal entries, −∞ or huge ones; sometimes a view that is not contiguous."""
        spread = self.one_of(1e-3, 1.0, 1.0, 10.0, 1e4)
        if len(shape) > 1 and self.integer(0, 3) == 0:
            x = torch.randn(*shape[:-2], shape[-1], shape[-2], generator=self.generator).mT
        else:
            x = torch.randn(shape, generator=self.generator)
        return x * spread

    def scores(self, *shape: int) -> Tensor:
        x = self.normal(*shape)
        kind = self.integer(0, 7)
        if kind == 0:
            x = x.sign().float()
        elif kind == 1:
            x = x.masked_fill(self.boolean(0.3, *shape), -torch.inf)
        elif kind == 2:
            x = x.masked_fill(self.boolean(0.3, *shape), self.one_of(-1e20, -1e30, -3e38))
        return x

    def boolean(self, share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < share

    def source_mask(self, batch: int, positions: int) -> Tensor | None:
        """Padding behind, in front, anywhere, everywhere."""
        kind = self.one_of("none", "behind", "front", "any", "all")
        if kind == "none":
            return None
        if kind in ("any", "all"):
            return self.boolean(0.5 if kind == "any" else 0.0, batch, positions)
        lengths = torch.randint(0, positions + 1, (batch, 1), generator=self.generator)
        behind = torch.arange(positions) < lengths
        return behind if kind == "behind" else ~behind

    def alphas(self, *shape: int) -> Tensor:
        ends = self.one_of(torch.tensor([1.0, 1.5]), torch.tensor([1.01, 1.99]), torch.tensor([1.5, 1.5]))
        return ends[0] + (ends[1] - ends[0]) * torch.rand(shape, generator=self.generator)

    def dtype(self) -> torch.dtype:
        return self.one_of(torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16)


def draw_entmax(draw: Draw) -> Case:
    shape = [draw.size(3) for _ in range(draw.integer(0, 4))] + [draw.size(3 * LONGEST)]
    dim = draw.integer(-len(shape), len(shape) - 1)
    alpha_shape = [1 if i == dim % len(shape) or draw.integer(0, 1) else n for i, n in enumerate(shape)]
    mask = draw.boolean(0.7, *shape[draw.integer(0, len(shape)) :]) if draw.integer(0, 1) else None
    arguments = {"scores": draw.scores(*shape), "alpha": draw.alphas(*alpha_shape), "dim": dim, "mask": mask}
    return Case(entmax, arguments, ("scores", "alpha"), draw.dtype())


def draw_attention(draw: Draw) -> Case:
    batch, heads, queries, keys, width, value_width = (draw.size(n) for n in (3, 4, LONGEST, LONGEST, 9, 9))
    over = [draw.one_of(1, n) for n in (batch, heads, queries, keys)]
    query, key = draw.normal(batch, heads, queries, width), draw.normal(batch, heads, keys, width) / 10
    bias = draw.scores(*over) if draw.integer(0, 2) == 0 else None
    scale = draw.one_of(None, 0.3) if width else 1.0
    largest = [
        float(x.abs().nan_to_num(posinf=0.0).max()) if x is not None and x.numel() else 0.0 for x in (query, key, bias)
    ]
    if largest[0] * largest[1] > SMALL or largest[2] > SMALL:
        # In whole numbers and quarters, whatever the order of the sums.
        query, key, scale = query.clamp(-1000, 1000).round(), key.clamp(-SMALL, SMALL).round(), 0.25
        bias = None if bias is None else bias.round()
    arguments = {
        "query": query,
        "key": key,
        "value": torch.randn(batch, heads, keys, value_width, generator=draw.generator),
        "alpha": draw.alphas(heads),
        "mask": draw.boolean(0.7, *over) if draw.integer(0, 1) else None,
        "bias": bias,
        "is_causal": draw.integer(0, 2) == 0,
        "chunks": Chunks(draw.integer(1, 9), draw.integer(-1, 2)) if draw.integer(0, 2) == 0 else Chunks(),
        "scale": scale,
    }
    dtype = draw.dtype() if width else torch.float32  # scores of no width have the eager form alone, in few bits too
    return Case(entmax_attention, arguments, ("query", "key", "value", "alpha", "bias"), dtype)


def draw_alignment(draw: Draw) -> Case:
    batch, heads, targets, positions = (draw.size(n) for n in (3, 3, 15, LONGEST))
    previous = torch.rand(batch, heads, positions, generator=draw.generator)
    arguments = {
        "energy": draw.scores(batch, heads, targets, positions),
        "source_mask": draw.source_mask(batch, positions),
        "previous": previous / previous.sum(-1, keepdim=True) if draw.integer(0, 1) else None,
    }
    return Case(expected_alignment, arguments, ("energy", "previous"), draw.dtype())


def draw_soft_attention(draw: Draw) -> Case:
    batch, heads, targets, positions = (draw.size(n) for n in (3, 3, 9, LONGEST))
    arguments = {
        "alignment": torch.rand(batch, heads, targets, positions, generator=draw.generator) * draw.one_of(1.0, 1e-3),
        "energy": draw.scores(batch, heads, targets, positions),
        "chunk_size": draw.one_of(None, None, draw.integer(1, 12), draw.integer(1, 2 * LONGEST)),
        "source_mask": draw.source_mask(batch, positions),
    }
    return Case(expected_soft_attention, arguments, ("alignment", "energy"), draw.dtype())


def draw_reading(draw: Draw) -> Case:
    """Of whole numbers: energies are exact, and both forms see the same."""
    batch, heads, targets = (draw.size(n) for n in (3, 4, 6))
    positions, width = draw.integer(1, LONGEST), draw.size(20)
    arguments = {
        "query": torch.randint(-2, 3, (batch, heads, targets, width), generator=draw.generator).float(),
        "key": torch.randint(-2, 3, (batch, heads, positions, width), generator=draw.generator).float(),
        "value": draw.normal(batch, heads, positions, draw.size(9)),
        "bias": torch.randint(-9, 3, (heads,), generator=draw.generator).float(),
        "start": torch.randint(0, positions, (batch, heads), generator=draw.generator) if draw.integer(0, 1) else None,
        "source_mask": draw.source_mask(batch, positions),
        "rule": draw.one_of("threshold", "cumulative"),
    }
    return Case(hard_reading, arguments, ())


DRAWN_BY = (draw_entmax, draw_attention, draw_alignment, draw_soft_attention, draw_reading)  # as FUNCTIONS
CASES = dict(zip(FUNCTIONS, DRAWN_BY, strict=True))


def run(case: Case, mode: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results and gradients by name, in float64."""
    arguments = {}
    for name, value in case.arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.to(case.dtype if name != "alpha" else value.dtype).to(
                dtype if name != "alpha" else torch.float64
            )
            value = value.detach().requires_grad_(name in case.with_gradient)
        arguments[name] = value
    with kernels.use(mode):
        results = case.call(**arguments)
        results = results if isinstance(results, tuple) else (results,)
        found = {f"result {i}": result.detach().double() for i, result in enumerate(results)}
        leaves = {name: arguments[name] for name in case.with_gradient if arguments[name] is not None}
        if leaves:
            upstream = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(0))
            upstream = upstream.to(case.dtype).to(results[0].dtype)
            gradients = torch.autograd.grad(results[0], list(leaves.values()), upstream, allow_unused=True)
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                found[f"gradient of {name}"] = (torch.zeros_like(leaf) if gradient is None else gradient).double()
    return found


def on_a_border(case: Case) -> bool:
    """Whether a weight is so near 0 that rounding decides if it is: there a gradient jumps."""
    if case.call is entmax:
        given = {name: case.arguments[name] for name in ("dim", "mask")}
        scores = case.arguments["scores"].to(case.dtype).double()
        with kernels.use("eager"):
            weights = entmax(scores, case.arguments["alpha"].double(), **given)
    elif case.call is entmax_attention:
        given = {k: v.to(case.dtype).double() if isinstance(v, Tensor) and v.is_floating_point() else v
                 for k, v in case.arguments.items()}  # fmt: skip
        with kernels.use("eager"):
            weights = entmax_attention(**given, return_weights=True)[1]
    else:
        return False
    return bool(((weights > 0) & (weights < BORDER)).any())


def difference(case: Case) -> dict[str, float]:
    """By result and gradient, the largest difference of the two forms in units of what rounding allows."""
    native, exact = run(case, "auto", case.dtype), run(case, "eager", torch.float64)
    apart = distances(case, native, exact)
    if max(apart.values(), default=0.0) <= 1:
        return apart
    rounded = run(case, "eager", torch.float32)
    by_rounding = distances(case, rounded, exact)
    from_rounded = distances(case, native, rounded)
    allowed = {name: max(1.0, 2 * far) if math.isfinite(far) else 1.0 for name, far in by_rounding.items()}
    return {name: min(from_rounded[name], apart[name] / allowed[name]) for name in apart}


def distances(case: Case, native: dict[str, Tensor], eager: dict[str, Tensor]) -> dict[str, float]:
    """By name, how far the forms are apart in units of what rounding allows."""
    skip_gradients = bool(case.with_gradient) and on_a_border(case)
    found = {}
    for name, expected in eager.items():
        if skip_gradients and name.startswith("gradient"):
            continue
        most = torch.finfo(case.dtype).max  # beyond it, what is returned in so few bits is infinite
        actual, expected = (x.clamp(-most, most) for x in (native[name], expected))
        if actual.shape != expected.shape:
            found[name] = math.inf
        elif expected.numel():
            bound = ROUNDING[case.dtype] * max(1.0, expected.abs().max().item())
            apart = torch.where(actual == expected, 0.0, (actual - expected).abs()).nan_to_num(math.inf).max().item()
            found[name] = apart / bound
    return found


def main() -> int:
    arguments = parse()
    if not backend.cpu_available():
        print(f"fuzz_kernels: there is nothing to compare: {kernels.status()}", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    different = 0
    for function in arguments.functions:
        largest, count = 0.0, 0
        for number in range(arguments.first, arguments.first + arguments.cases):
            try:
                apart = difference(CASES[function](Draw(number)))
            except Exception as error:  # one form, or both, refuse what is drawn to be right
                apart = {f"{type(error).__name__}: {error}": math.inf}
            worst = max(apart.values(), default=0.0)
            largest = max(largest, worst)
            if worst > 1:
                count += 1
                print(
                    f"{function} {number}: " + ", ".join(f"{k} {v:.3g}" for k, v in apart.items() if v > 1), flush=True
                )
        print(
            f"{function}: {arguments.cases} cases, {count} different; largest {largest:.2g} of what is allowed",
            flush=True,
        )
        different += count
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
