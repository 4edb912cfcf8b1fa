"""The worker processes of a supervisor: start, orders, answers, end. Each has pipes of its own and nothing shared,
so that the death of one leaves the others alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

from pathsum.sweeping.config import RunConfig
from pathsum.sweeping.worker import STARTER

GRACE = 120.0  # seconds a worker may take for its checkpoint, once told to stop


class Hand(Protocol):
    """A worker as its supervisor sees it, wherever it is."""

    ready: bool
    order: list[RunConfig]  # what it was asked to train; empty while it waits
    running: list[str]  # the folders of what it got
    since: float

    @property
    def label(self) -> str:
        """How it is called in what is shown."""

    @property
    def waits(self) -> bool:
        """Whether it can be given an order."""

    def send(self, order: Sequence[RunConfig]) -> None:
        """Ask it to train runs, as one program."""


class Hands(Protocol):
    """The workers a supervisor has: processes here (`Crew`), or tasks on a cluster."""

    options: dict[str, Any]

    @property
    def members(self) -> Sequence[Any]:
        """Those that are there."""

    @property
    def events(self) -> Any:
        """What they say: `get(timeout=...)` gives a worker and its message, an empty one at its end."""

    def start(self) -> None:
        """One more."""

    def dismiss(self, member: Any) -> int:
        """Forget one that has ended."""

    def stop(self) -> None:
        """Let every one write its checkpoint and end."""


@dataclass(eq=False)
class Member:
    """A worker process."""

    process: subprocess.Popen[str]
    ready: bool = False
    order: list[RunConfig] = field(default_factory=list)  # what it was asked to train; empty while it waits
    running: list[str] = field(default_factory=list)  # the folders of what it got
    since: float = 0.0

    @property
    def label(self) -> str:
        """How it is called in what is shown."""
        return str(self.process.pid)

    @property
    def waits(self) -> bool:
        """Whether it can be given an order."""
        return self.ready and not self.order

    def send(self, order: Sequence[RunConfig]) -> None:
        """Ask it to train runs, as one program; a worker that is gone is noticed by the end of its answers."""
        self.order, self.running, self.since = list(order), [], time.monotonic()
        with suppress(BrokenPipeError):
            self.write([config.to_json() for config in order])

    def write(self, message: Any) -> None:
        """Send one line."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """Let it know that there will be no more: it stops what it does, with a checkpoint."""
        assert self.process.stdin is not None
        with suppress(OSError):  # gone, with a line unread
            self.process.stdin.close()


Event = tuple[Member, dict[str, Any]]  # an answer; an empty one: the worker has ended


class Crew:
    """The workers that are alive, and the queue of what they say."""

    def __init__(self, options: dict[str, Any], threads: int) -> None:
        self.options, self.threads = {**options, "threads": threads}, threads
        self.members: list[Member] = []
        self.events: SimpleQueue[Event] = SimpleQueue()

    def start(self) -> None:
        """Start one more worker."""
        count = str(self.threads)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **limits},
        )
        member = Member(process)
        self.members.append(member)
        threading.Thread(target=self._listen, args=(member,), daemon=True).start()
        with suppress(BrokenPipeError):
            member.write({"path": sys.path, **self.options})

    def _listen(self, member: Member) -> None:
        """Pass on what a worker says, and its end."""
        assert member.process.stdout is not None
        with member.process.stdout as answers:
            for line in answers:
                with suppress(ValueError):  # torn by its death
                    self.events.put((member, json.loads(line)))
        member.process.wait()
        self.events.put((member, {}))

    def dismiss(self, member: Member) -> int:
        """Forget a worker that has ended; returns its exit code, negative for a signal."""
        self.members.remove(member)
        member.close()
        return member.process.wait()

    def stop(self) -> None:
        """Let every worker write its checkpoint and end; after `GRACE` seconds, or Ctrl-C, without one."""
        try:
            self._ask_to_stop(time.monotonic() + GRACE)
        finally:
            for member in list(self.members):
                if member.process.poll() is None:
                    member.process.kill()
                self.dismiss(member)

    def _ask_to_stop(self, deadline: float) -> None:
        for member in self.members:
            member.close()
            if not member.ready:
                member.process.terminate()
        while time.monotonic() < deadline:
            alive = [member for member in self.members if member.process.poll() is None]
            if not alive:
                return
            time.sleep(0.05)
