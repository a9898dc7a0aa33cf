"""Blocks of a data stage on several processes: results in order, and no more of them waiting than the workers need."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from post_training.core.errors import DataError
from post_training.core.secrets import mask_output


def in_order(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    workers: int,
    start: Callable[..., None],
    setting: tuple[Any, ...],
    preload: list[str],
    source: Path,
) -> Iterator[Any]:
    """What a function gives for each call, in the order of the calls.

    Args:
        function: called in a worker, with each of `calls` as its arguments.
        start: called once in each worker, with `setting`.
        preload: modules that the fork server imports for all workers.
        source: what is read, for the message.

    Raises DataError when a worker process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    pool = ProcessPoolExecutor(workers, context, _start_masked, (start, *setting))
    waiting: deque[Future[Any]] = deque()
    try:
        for call in calls:
            waiting.append(pool.submit(function, *call))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            f"{source}: a worker process died, most likely for want of memory; lower data.num_proc (now {workers})"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_masked(start: Callable[..., None], *setting: Any) -> None:
    mask_output()  # a user's transform may print anything
    start(*setting)
