"""Streams stepped alone or together: each says what it needs computed next, and goes on with the answer.

A task is a generator that yields what the encoder (`Chunk`) or the decoder (`Step`) is to compute and is sent the
result. Tasks that run together get their answers out of one pass for all that wait for the same side.
"""

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from torch import Tensor

from .hearing import Step, take
from .streaming import Chunk, encode

Result = TypeVar("Result")
Task = Generator[Chunk | Step, Tensor | None, Result]


def run(tasks: Sequence[Task[Result]]) -> list[Result]:
    """Runs the tasks to their ends: what they return.

    Raises:
        whatever a task raises, the first of them when all others have come to their ends.
    """
    results: dict[int, Result] = {}
    failures: list[Exception] = []
    answers: dict[int, Any] = dict.fromkeys(range(len(tasks)))
    while answers:
        asked: dict[int, Chunk | Step] = {}
        for index, answer in answers.items():
            try:
                asked[index] = tasks[index].send(answer)
            except StopIteration as end:
                results[index] = end.value
            except Exception as failure:
                failures.append(failure)
        chunks = {index: asked for index, asked in asked.items() if isinstance(asked, Chunk)}
        steps = {index: asked for index, asked in asked.items() if isinstance(asked, Step)}
        answers = {}
        if chunks:
            answers |= zip(chunks, encode(list(chunks.values())), strict=True)
        if steps:
            answers |= zip(steps, take(list(steps.values())), strict=True)
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(tasks))]
