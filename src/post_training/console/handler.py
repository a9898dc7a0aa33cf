"""The logger plugin: a line a finished job, a live line a running one, a bar over all of them; what failed comes last.

Snakemake calls `emit` in a thread of its own, in the order of events, and `close` at the very end. With `--verbose` or
`--printshellcmds` Snakemake's own handler prints everything instead.
"""

import logging
import os
import sys
import threading
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase

from post_training.console import endings, jobs, messages, view
from post_training.core.format import folded
from post_training.slurm.cluster import NOTE

SHOW = "post_training_show"
"""Attribute of a log record: a function of the console that prints more than the record's text."""
_PLAIN_SECONDS = 60.0
_REASON = 100
"""Characters of a failure's message where it happens; all of it comes at the end."""


class LogHandler(LogHandlerBase):
    """What `--logger post-training` prints."""

    def __post_init__(self) -> None:
        settings = self.common_settings
        self._own: logging.Handler | None = None
        if settings.verbose or settings.printshellcmds or settings.debug_dag:
            self._own = _snakemakes_own(settings)
        quiet = {str(getattr(part, "name", part)).lower() for part in settings.quiet or ()}
        self._says_jobs, self._silent = not quiet & {"rules", "all"}, "all" in quiet
        stream = sys.stdout if settings.stdout else sys.stderr
        self.console = Console(file=stream, no_color=settings.nocolor or None, highlight=False)
        self.board = jobs.Board(jobs.PLANNED)
        self._outputs: dict[int, str] = {}
        self._planned: list[tuple[str, str]] = []
        self._failed: dict[str, endings.Failed] = {}
        self._errors: list[str] = []
        self._interrupted = False
        self._live: Live | None = None
        self._ended = threading.Event()
        self._mutex = threading.RLock()

    writes_to_stream = property(lambda self: True)  # type: ignore[assignment]
    writes_to_file = property(lambda self: False)  # type: ignore[assignment]
    has_filter = property(lambda self: True)  # type: ignore[assignment]
    has_formatter = property(lambda self: True)  # type: ignore[assignment]
    needs_rulegraph = property(lambda self: False)  # type: ignore[assignment]

    def emit(self, record: logging.LogRecord) -> None:
        """Take notice of an event, and print what it is worth."""
        if self._own is not None:
            if self._own.filter(record):
                self._own.emit(record)
            return
        with self._mutex:
            try:
                event = getattr(record, "event", None)
                react = getattr(self, f"_on_{event}", None) if event else self._on_text
                if react is not None:
                    react(record)
            except BrokenPipeError:
                self._silent = True
            except Exception:  # a console that fails must not end a training
                self.handleError(record)

    def close(self) -> None:
        """Print what failed or was stopped; Snakemake calls this when all else has been said."""
        if self._own is not None:
            self._own.close()
        self._stop_live()
        with self._mutex:
            if self._planned:
                for line in view.plan_lines(self._planned):
                    self._print(line)
            for line, style in messages.last_lines(self._failed, self.board, self._errors, self._interrupted):
                self._print(line, style)
            self._planned, self._failed, self._errors, self._interrupted = [], {}, [], False
        super().close()

    def _on_job_info(self, record: Any) -> None:
        output = next(iter(record.output), "")
        self._outputs[record.jobid] = output
        if self.common_settings.dryrun:
            if output:
                self._planned.append((record.rule_name, jobs.LABELS.get(output) or view.label_of(record.wildcards)))
            return
        if output in self.board.jobs:
            self.board.start(output)
            self._start_live()

    def _on_job_finished(self, record: Any) -> None:
        output = self._outputs.get(record.job_id, "")
        if self.common_settings.dryrun or output not in self.board.jobs:
            return
        took = self.board.end(output, done=True)
        if self._says_jobs:
            from post_training.console.made import made

            job = self.board.jobs[output]
            text = made(job.output)
            later = ", shown at the end" if job.kind == "preflight" and "warning" in text else ""
            self._line("done", output, took, text + later)

    def _on_job_error(self, record: Any) -> None:
        output = next(iter(record.output), "")
        if output in self._failed:
            return
        took = self.board.end(output, done=False)
        if (
            self._interrupted
            and (job := jobs.PLANNED.get(output))
            and endings.stopped(endings.Failed(job, job.kind)) is None
        ):
            return  # ended by the same Ctrl-C, without anything to save
        failed = endings.Failed(jobs.PLANNED.get(output), record.rule_name, record.rule_msg or "", list(record.log))
        self._failed[output or record.rule_name] = failed
        if endings.stopped(failed) is None:
            self._line("failed", output, took, view.cut(endings.why(failed)[0], _REASON))

    def _on_group_error(self, record: Any) -> None:
        self._errors.append(record.getMessage())

    def _on_error(self, record: Any) -> None:
        if record.exception == "KeyboardInterrupt":
            self._interrupted = True
        elif not (record.exception == "RuleException" and "CalledProcessError" in record.getMessage()):
            self._errors.append(messages.tidy(record.exception, record.getMessage()))

    def _on_text(self, record: Any) -> None:
        if NOTE in record.__dict__:
            output, job_id, state = record.__dict__[NOTE]
            self.board.slurm[output] = (job_id, state)
            if self._live is not None:
                return
        if show := record.__dict__.get(SHOW):
            self._stop_live()
            if not self._silent:
                show(self.console)
            return
        text = record.getMessage()
        if messages.METADATA.match(text):
            return
        if text.startswith(messages.INTERRUPTED):
            self._interrupted = True
            self._print("stopping: running jobs save what they have, which may take some seconds", "yellow")
        elif record.levelno >= logging.ERROR:
            if not text.startswith(messages.JOB_FAILED):
                self._errors.append(text)
        elif record.levelno >= logging.WARNING:
            self._print(text, "yellow")
        elif text not in ("", "None") and not text.startswith(messages.NOISE) and record.levelno >= logging.INFO:
            self._print(text)

    def _line(self, verdict: str, output: str, took: float, text: str) -> None:
        job = self.board.jobs.get(output)
        if job is None or self._silent:
            return
        line = view.job_line(self.console, verdict, job, took, text, self.board.jobs)
        if self.console.is_terminal:
            self.console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            self._print(line.plain)

    def _print(self, text: str, style: str = "") -> None:
        """A text at its full length; in a terminal, lines end between words."""
        if self._silent:
            return
        if self.console.is_terminal:
            text = folded(text, self.console.width)
        self.console.print(Text(text, style=style), soft_wrap=True)

    def _start_live(self) -> None:
        """With the first job: the lines that change, or on a stream that is no terminal one now and then."""
        if self._live is not None or self._ended.is_set() or self._silent or not self._says_jobs:
            return
        if self.console.is_terminal and os.environ.get("TERM") != "dumb":
            self._live = Live(
                get_renderable=lambda: view.panel(self.console, self.board),
                console=self.console,
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()
        elif not any(thread.name == "progress" for thread in threading.enumerate()):
            threading.Thread(target=self._tell_now_and_then, name="progress", daemon=True).start()

    def _stop_live(self) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tell_now_and_then(self) -> None:
        while not self._ended.wait(_PLAIN_SECONDS):
            with self._mutex:
                for line in view.plain_progress(self.board):
                    self._print(line)


def _snakemakes_own(settings: Any) -> logging.Handler:
    """What Snakemake prints without a plugin."""
    from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter

    arguments = (settings.quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds)
    made: logging.Handler = ColorizingTextHandler(
        nocolor=settings.nocolor,
        stream=sys.stdout if settings.stdout else sys.stderr,
        formatter=DefaultFormatter(settings.quiet, settings.show_failed_logs),
    )
    made.addFilter(DefaultFilter(*arguments).filter)
    return made
