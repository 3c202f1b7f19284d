"""Which of several processes this is, as `accelerate launch` and `torchrun` tell by environment variables."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
_LONGEST_WAIT = timedelta(days=30)  # for processes that have more to do


@dataclass(frozen=True)
class Rank:
    """One of `world_size` processes, numbered from 0."""

    number: int = 0
    world_size: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Rank":
        """From RANK, WORLD_SIZE and LOCAL_RANK; without them this is the only process.

        Raises:
            ValueError: if they are no numbers, or do not fit each other.
        """
        given = [environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        if given[0] is None and given[1] is None:
            return cls()
        try:
            rank = cls(int(given[0] or ""), int(given[1] or ""), int(given[2] or 0))
        except ValueError:
            raise ValueError(f"RANK and WORLD_SIZE must both be numbers, got {given[0]!r} and {given[1]!r}.") from None
        if not 0 <= rank.number < rank.world_size:
            raise ValueError(f"RANK must lie in 0 to WORLD_SIZE - 1 = {rank.world_size - 1}, got {rank.number}.")
        return rank

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part: every `world_size`-th item. The parts of all processes are disjoint and hold all."""
        return list(items[self.number :: self.world_size])


@contextmanager
def together(rank: Rank) -> Iterator["Meeting"]:
    """Joins the processes of a launcher, so that none ends before all have: a launcher stops the others when one ends
    with an error."""
    if rank.world_size == 1 or "MASTER_ADDR" not in os.environ:
        yield Meeting(rank, joined=False)
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        yield Meeting(rank, joined=True)
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Meeting:
    """Where processes tell each other what they did; `joined` is False where nothing connects them."""

    rank: Rank
    joined: bool

    def gather(self, mine: Any) -> list[Any]:
        """What all processes give, in their order, once all have come; `mine` alone where nothing connects them."""
        if not self.joined:
            return [mine]
        import torch.distributed as dist

        everyone: list[Any] = [None] * self.rank.world_size
        dist.all_gather_object(everyone, mine)
        return everyone
