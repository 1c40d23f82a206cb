"""Several processes, perhaps on several machines, as `accelerate launch` starts them; one alone needs no accelerate."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=30)  # of a process that is done for the others


@dataclass(frozen=True)
class Processes:
    """This process: number `rank` of `world`, to compute on `device`; None where nobody chose one."""

    rank: int = 0
    world: int = 1
    device: str | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The items of this process: dealt out one by one, so that shares are alike where neighbours are."""
        return list(items[self.rank :: self.world])

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in the order of their ranks. Every process must come here."""
        if self.world == 1:
            return list(items)
        from accelerate.utils import gather_object

        return gather_object(list(items))


def processes() -> Processes:
    """This process among those that were launched together."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes, str(state.device))
