"""Worker processes of a data stage: results in the order of the calls, and no more of them waiting than workers need."""

import functools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from post_training.core.errors import DataError
from post_training.core.secrets import mask_output


def allowed(num_proc: int | None) -> int:
    """Processes that a stage may start: `data.num_proc`, capped by the cores of the job."""
    cores = len(os.sched_getaffinity(0))
    return min(num_proc or cores, cores)


class Pool:
    """Processes that call functions with a state of their own; with one worker it is this process."""

    def __init__(
        self, workers: int, state: Callable[..., Any], arguments: tuple[Any, ...], preload: list[str], source: Path
    ) -> None:
        """Start nothing yet: processes are forked when they are needed.

        Args:
            workers: how many.
            state: called with `arguments` in each process, at its first call; what it returns is the first argument of
                every function.
            preload: modules that the fork server imports for all workers.
            source: file that is read, for the message.
        """
        self.workers, self.source = workers, source
        self._state = functools.cache(functools.partial(state, *arguments))
        self._executor: ProcessPoolExecutor | None = None
        if workers > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(preload)
            self._executor = ProcessPoolExecutor(workers, context, _start, (state, arguments))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """One call in any worker. Raises BrokenProcessPool when its process dies."""
        if self._executor is None:
            return function(self._state(), *arguments)
        return self._executor.submit(_call, function, arguments).result()

    def in_order(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Results for the arguments of each call. Raises DataError when a worker process dies."""
        if self._executor is None:
            yield from (function(self._state(), *arguments) for arguments in calls)
            return
        waiting: deque[Future[Any]] = deque()
        try:
            for arguments in calls:
                waiting.append(self._executor.submit(_call, function, arguments))
                if len(waiting) > 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                f"{self.source}: a worker process died, most likely out of memory; lower data.num_proc (now {self.workers})"
            ) from None


_state: Callable[[], Any]


def _start(state: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _state
    mask_output()  # a user's transform may print anything
    _state = functools.cache(functools.partial(state, *arguments))


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(_state(), *arguments)
