"""Timing of several programs against each other: in turns, so that a change of the machine's load meets all alike.

For all of them malloc keeps freed memory, as scripts/train.py has it. Otherwise, at these sizes, a ratio tells which of
two programs the system happened to map new pages for.
"""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_entmax_asr import kernels
from hf_entmax_asr.training.memory import keep_freed_memory


def compare(
    contestants: dict[str, Callable[[], object]],
    rounds: int = 15,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each contestant over `rounds` rounds, in each of which every one runs once.

    clock: time.process_time counts the processor's seconds of all threads, which other programs change less.
    """
    keep_freed_memory()
    for _ in range(warm_up):
        for run in contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def with_gradients(function: Callable, inputs: list[torch.Tensor], *rest: Any) -> Callable[[], object]:
    """A run of `function(*inputs, *rest)` forward and backward, through autograd and with all its allocations."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    grad = torch.randn_like(function(*leaves, *rest))
    return lambda: torch.autograd.grad(function(*leaves, *rest), leaves, grad)


def machine() -> str:
    """One paragraph on the machine, the software and the load, to stand beside the figures."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{model}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"torch's instructions {torch.backends.cpu.get_cpu_capability()}, commit {commit}, load {load}\n"
        f"{kernels.status()}"
    )


def table(heading: list[str], rows: list[list[object]]) -> str:
    """Markdown."""
    lines = [
        heading,
        ["---"] * len(heading),
        *[[f"{c:.3g}" if isinstance(c, float) else str(c) for c in r] for r in rows],
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def attention_inputs(checkpoint: Path, frames: int) -> dict[str, list[torch.Tensor]]:
    """query, key, value (1, H, S, D) and α (H,) of every encoder layer of a trained model, on recordings of its sample
    corpus put one behind the other to about `frames` feature frames."""
    import soundfile
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    from hf_entmax_asr.model import transforms

    model = AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    clips = sorted((Path(__file__).parent.parent / "sample_corpus" / "clips").glob("*"))
    wave, rate = [], 16000
    for clip in clips:
        audio, rate = soundfile.read(clip, dtype="float32")
        wave.append(torch.from_numpy(audio if audio.ndim == 1 else audio.mean(1)))
        if sum(map(len, wave)) >= frames * rate // 100:
            break
    inputs = processor(audio=torch.cat(wave)[: frames * rate // 100].numpy(), sampling_rate=rate)
    taken: list[list[torch.Tensor]] = []

    def take(query: Tensor, key: Tensor, value: Tensor, alpha: Tensor | float, *_: Any, **__: Any) -> Any:
        alpha = torch.as_tensor(alpha, dtype=torch.float32).expand(query.shape[1])
        taken.append([t.detach().clone() for t in (query, key, value, alpha)])
        return original(query, key, value, alpha)

    original, transforms.entmax_attention = transforms.entmax_attention, take
    try:
        with torch.no_grad():
            model.get_encoder()(inputs["input_features"], attention_mask=inputs["attention_mask"])
    finally:
        transforms.entmax_attention = original
    return {f"layer {i}": tensors for i, tensors in enumerate(taken)}
