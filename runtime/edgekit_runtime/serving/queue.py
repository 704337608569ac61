"""Queue: what waits for a model, in the order in which it is served; bounded, and never blocking.

More urgent priorities come first, among equals the earliest deadline (EDF: Liu and Layland, 1973),
then who came first. A request without a deadline is ordered as if it were due after `PATIENCE_NS`,
so that a stream of requests with deadlines cannot hold it back for ever.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence

from edgekit_runtime.serving.job import Job

PATIENCE_NS = 1_000_000_000

# Rank, due time, number, job: the number tells any two apart before a job is compared.
_Entry = tuple[int, int, int, Job]


class Queue:
    """Waiting jobs. Lives on the event loop; no locks.

    Attributes:
        is_plain: no job was put in whose deadline or choice of variant must be looked at.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._number = 0
        self.is_plain = True

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Job]:
        """In the order in which they are served."""
        return (entry[3] for entry in self._entries)

    def push(self, job: Job) -> None:
        """Put a job in its place."""
        self._number += 1
        due_ns = job.arrived_ns + PATIENCE_NS if job.deadline_ns is None else job.deadline_ns
        entry = (job.rank, due_ns, self._number, job)
        if not job.is_plain:
            self.is_plain = False
        entries = self._entries
        if not entries or entry > entries[-1]:
            entries.append(entry)
        else:
            insort(entries, entry)

    def before(self, job: Job) -> Iterator[Job]:
        """The jobs that would be served before this one, which is not in the queue yet."""
        due_ns = job.arrived_ns + PATIENCE_NS if job.deadline_ns is None else job.deadline_ns
        for rank, other_ns, _, other in self._entries:
            if (rank, other_ns) > (job.rank, due_ns):
                return
            yield other

    def prune(self) -> None:
        """Forget the jobs that nobody wants any more."""
        if any(entry[3].settled for entry in self._entries):
            self._entries = [entry for entry in self._entries if not entry[3].settled]
        if not self._entries:
            self.is_plain = True

    def head(self, wanted: Callable[[Job], bool]) -> Job | None:
        """The first job that is wanted."""
        return next((entry[3] for entry in self._entries if wanted(entry[3])), None)

    def take_next(self, *, max_rows: int) -> list[Job]:
        """Remove the first job that is still wanted and the like ones right behind it that fit.

        None where nobody wants anything any more.
        """
        taken: list[Job] = []
        rows, used, key = 0, 0, None
        for _, _, _, job in self._entries:
            if not job.settled:
                rows += job.rows
                if not taken:
                    key = job.key
                elif job.key != key or rows > max_rows or job.rows == 0:
                    break
                taken.append(job)
            used += 1
            if rows >= max_rows or rows == 0 < len(taken):
                break
        del self._entries[:used]
        return taken

    def take(self, first: Job, *, max_rows: int) -> list[Job]:
        """Remove a waiting job and the like ones right behind it that fit into one batch."""
        entries = self._entries
        start = 0
        while entries[start][3] is not first:
            start += 1
        length = batch_length([entry[3] for entry in entries[start:]], max_rows=max_rows)
        taken = [entry[3] for entry in entries[start : start + length]]
        del entries[start : start + length]
        return taken

    def clear(self) -> list[Job]:
        """Remove everything."""
        jobs = list(self)
        self._entries = []
        self.is_plain = True
        return jobs


def batch_length(jobs: Sequence[Job], *, max_rows: int) -> int:
    """How many of the first jobs run together: like ones, in their order, within `max_rows`."""
    first = jobs[0]
    rows = first.rows
    if rows == 0 or rows >= max_rows:
        return 1
    key = first.key
    for count, job in enumerate(jobs):
        if count == 0:
            continue
        rows += job.rows
        if job.key != key or job.rows == 0 or rows > max_rows:
            return count
    return len(jobs)
