"""Scores by anybody's function, which may raise, end its process, or never return.

With a limit the function runs in a process of its own: nothing else ends code that does not come back to Python, such as a
regular expression without end or a library in C. A batch over the limit is asked again answer by answer, in a new process, so that one
answer costs no other its score.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import time
from typing import Any

import orjson

from post_training.core.errors import DataError, UserError, brief, located
from post_training.on_policy.answers import Line
from post_training.rewards import Reward
from post_training.run_dir.parent import snakemake_is_gone
from post_training.run_dir.stop import REQUEST, die_with_parent

# Answers over the limit, with no score before, after which a function is taken for one that never returns.
_HOPELESS = 10


class LimitedReward:
    """A reward that is asked for scores; a context, which ends its process.

    Args:
        reward: the function with its arguments.
        limit_seconds: how long an answer may take; None = any time, in this process.
    """

    def __init__(self, reward: Reward, limit_seconds: float | None) -> None:
        self.reward, self.limit_seconds = reward, limit_seconds
        self._batch_seconds = limit_seconds or 0.0
        self._process: Any = None
        self._pipe: Any = None
        self._has_scored, self._too_slow = False, 0
        if limit_seconds is not None:
            self._start()

    @property
    def name(self) -> str:
        """The reward's."""
        return self.reward.name

    def __enter__(self) -> "LimitedReward":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def lines(self, prompts: list[Line], answers: list[Line]) -> list[Line] | None:
        """A line of `scores.jsonl` for each answer; None where this process is to stop before all of them have one.

        Args:
            prompts: the line of `prompts.jsonl` of each answer.
            answers: lines of `answers.jsonl`.

        Raises:
            UserError: where the reward cannot work at all, such as a server that refuses its key, or never returns.
        """
        if self.limit_seconds is None:
            return scored(self.reward, prompts, answers)
        found = self._ask(prompts, answers, self._batch_seconds if len(answers) > 1 else self.limit_seconds)
        if isinstance(found, str) and len(answers) > 1:
            print(f"score: {len(answers)} answers: {found}; now one by one", flush=True)
            return self._one_by_one(prompts, answers)
        return [_without(answers[0], found)] if isinstance(found, str) else found

    def _one_by_one(self, prompts: list[Line], answers: list[Line]) -> list[Line] | None:
        assert self.limit_seconds is not None
        lines, seconds = [], 0.0
        for prompt, answer in zip(prompts, answers, strict=True):
            if REQUEST.wanted or snakemake_is_gone():
                return None
            began = time.monotonic()
            found = self._ask([prompt], [answer], self.limit_seconds)
            if isinstance(found, str):
                print(f"score: answer {answer['sample']} to prompt {answer['prompt']}: {found}", flush=True)
                self._give_up_on_one_that_never_returns(found)
                lines.append(_without(answer, found))
            else:
                lines += found
                seconds += time.monotonic() - began
        self._batch_seconds = max(self._batch_seconds, 2 * seconds)  # a slow function, and not one that hangs
        return lines

    def _give_up_on_one_that_never_returns(self, reason: str) -> None:
        if self._too_slow >= _HOPELESS and not self._has_scored:
            problem = f"none of the first {self._too_slow} answers has a score; no score {self._too_slow}: {reason}"
            raise DataError(f"reward {self.reward.name}: {problem}")

    def _ask(self, prompts: list[Line], answers: list[Line], seconds: float) -> list[Line] | str:
        """The lines, or why there are none."""
        request = orjson.dumps([prompts, answers])
        for _ in range(2):  # a process that ends may have been killed by somebody else
            try:
                found = self._reply(request, seconds)
            except (EOFError, OSError):  # it is gone
                assert self._process is not None
                self._process.join(1.0)
                code = self._process.exitcode or 0
                self._end()
                continue
            if found is None:
                self._end()
                self._too_slow += len(answers) == 1
                return f"too_slow: no score within {seconds:g} s (limit_seconds)"
            if isinstance(found, str):
                raise UserError(found)
            self._has_scored |= any(line["score"] is not None for line in found)
            return found
        return f"process_ended: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def _reply(self, request: bytes, seconds: float) -> Any:
        """Lines, the message of an error that ends the job, or None where none came in time."""
        if self._process is None:
            self._start()
        self._pipe.send_bytes(request)
        return orjson.loads(self._pipe.recv_bytes()) if self._pipe.poll(seconds) else None

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.reward, other, self._pipe, os.getpid()))
        self._process.start()
        other.close()

    def _end(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            with contextlib.suppress(OSError):  # what it started
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.join()
            self._process = None


def _serve(reward: Reward, pipe: Any, of_parent: Any, parent: int) -> None:
    """The process of a reward: scores what comes through the pipe, until that is closed."""
    os.setpgid(0, 0)  # Ctrl-C is for the job, which ends after its batch
    die_with_parent(parent)
    of_parent.close()
    while True:
        try:
            prompts, answers = orjson.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            reply: Any = scored(reward, prompts, answers)
        except UserError as error:
            reply = str(error)
        pipe.send_bytes(orjson.dumps(reply))


def scored(reward: Reward, prompts: list[Line], answers: list[Line]) -> list[Line]:
    """A line of `scores.jsonl` for each answer, by a reward that returns; one by one where it raises for all of them together."""
    try:
        found = _called(reward, prompts, answers)
    except BaseException as error:  # a reward is anybody's code
        if isinstance(error, UserError) and not isinstance(error, DataError):
            raise
        if len(answers) > 1:
            return [line for one in zip(prompts, answers, strict=True) for line in scored(reward, [one[0]], [one[1]])]
        found = [error]
    source = getattr(reward.function, "__globals__", {}).get("__file__", "")
    return [
        {"prompt": line["prompt"], "sample": line["sample"], **_value(value, source)}
        for line, value in zip(answers, found, strict=True)
    ]


def _called(reward: Reward, prompts: list[Line], answers: list[Line]) -> list[Any]:
    columns = [prompt["columns"] for prompt in prompts]
    return reward([prompt["prompt"] for prompt in prompts], [line["answer"] for line in answers], columns)


def _without(answer: Line, reason: str) -> Line:
    return {"prompt": answer["prompt"], "sample": answer["sample"], "score": None, "reason": reason}


def _value(found: Any, source: str) -> dict[str, Any]:
    if isinstance(found, BaseException):
        reason = brief(found) if isinstance(found, DataError) else located(found, source)
        return {"score": None, "reason": reason.encode(errors="replace").decode()}
    if found is None:
        return {"score": None, "reason": "none"}
    try:
        number = None if isinstance(found, str | bytes) else float(found)
    except Exception:  # whatever stands for a number in anybody's code
        number = None
    if number is None:
        return {"score": None, "reason": f"not_a_number: {type(found).__name__}"}
    return {"score": number} if math.isfinite(number) else {"score": None, "reason": "nan_or_infinite"}
