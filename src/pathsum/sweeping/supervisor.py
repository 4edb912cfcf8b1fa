"""The supervisor of a local sweep: hands runs to workers, replaces those that die, and ends when all runs have.

Several may work on one store, also on several machines: which worker gets a run is decided by its lease.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from pathsum.errors import OutputError, PathsumError
from pathsum.store import ENDED, Store
from pathsum.sweeping.config import RunConfig
from pathsum.sweeping.crew import Hand, Hands
from pathsum.sweeping.display import Display

SURVEY = 1.0  # seconds between two looks at the whole store, or twenty times what a look takes
MOST_EARLY = 3  # workers that may fail in a row before they could be asked anything
MOST_KILLED = 30  # the same, killed by a signal


class Supervisor:
    """One sweep at work."""

    def __init__(
        self, store: Store, configs: Sequence[RunConfig], crew: Hands, display: Display, *, workers: int, stack: int
    ) -> None:
        self.store, self.crew, self.display = store, crew, display
        self.workers, self.stack = workers, stack
        self.left = {config.folder: config for config in configs}
        self.free: list[RunConfig] = []  # nobody held them at the last look
        self.next_survey = 0.0
        self.early: list[int] = []  # exit codes of workers that ended before they began

    def run(self) -> None:
        """Until every run is finished or failed. Raises what makes going on pointless."""
        try:
            while True:
                if time.monotonic() >= self.next_survey:
                    self.survey()
                if not self.left:
                    return
                self.assign()
                self.listen()
                self.display.update(self.left, self.crew.members)
        finally:
            self.crew.stop()

    def survey(self) -> None:
        """Look at every run that is left, but those of our own workers."""
        began = time.monotonic()
        ours = {config.folder for member in self.crew.members for config in member.order}
        self.free = []
        self.display.elsewhere = 0
        for folder, config in list(self.left.items()):
            state = self.store.state(config)
            if state in ENDED:
                self.finish(folder, state)
            elif folder not in ours:
                if state == "running":
                    self.display.elsewhere += 1
                else:
                    self.free.append(config)
        now = time.monotonic()
        self.next_survey = now + max(SURVEY, 20 * (now - began))

    def finish(self, folder: str, status: str) -> None:
        """Take a run off the list."""
        config = self.left.pop(folder, None)
        if config is None:
            return
        run = self.store.summary(config)
        reason = self.store.error(config) if status == "failed" else str(run.get("reason", ""))
        self.display.finished(config, status, reason, run)

    def assign(self) -> None:
        """Give orders to the workers that wait, and start more where there is work for them."""
        members = self.crew.members
        for member in [member for member in members if member.waits]:
            order = self.next_order()
            if not order:
                return
            member.send(order)
        starting = sum(not member.ready for member in members)
        for _ in range(min(self.workers - len(members), math.ceil(len(self.free) / self.stack) - starting)):
            self.crew.start()

    def next_order(self) -> list[RunConfig]:
        """The next run, with others that can be trained as one program with it; an even share of them."""
        if not self.free:
            return []
        key = group_key(self.free[0]) if self.stack > 1 else None
        alike = [c for c in self.free if group_key(c) == key] if key is not None else self.free[:1]
        order = alike[: min(self.stack, math.ceil(len(alike) / self.workers))]
        chosen = {config.folder for config in order}
        self.free = [config for config in self.free if config.folder not in chosen]
        return order

    def listen(self) -> None:
        """Wait a moment for what the workers say, and act on it."""
        wait = self.display.interval
        while True:
            try:
                member, message = self.crew.events.get(timeout=wait)
            except queue.Empty:
                return
            self.act(member, message)
            wait = 1e-3

    def act(self, member: Hand, message: dict[str, Any]) -> None:
        """Take in one answer of a worker; an empty one says that it has ended."""
        if not message:
            self.lost(member)
        for what, value in message.items():
            answers: dict[str, Callable[[Hand, Any], None]] = {
                "ready": self.on_ready,
                "claimed": self.on_claimed,
                "ended": self.on_ended,
                "fatal": self.on_fatal,
                "too_small": self.on_too_small,
            }
            answers[what](member, value)

    def on_ready(self, member: Hand, value: Any) -> None:
        member.ready = True
        self.early = []

    def on_claimed(self, member: Hand, value: list[str]) -> None:
        member.running = value

    def on_ended(self, member: Hand, value: list[dict[str, Any]]) -> None:
        """A worker has done what it was asked for."""
        member.order, member.running = [], []
        for outcome in value:
            if outcome["status"] in ENDED:
                self.finish(outcome["run"], outcome["status"])
            elif outcome["status"] != "taken" and outcome["run"] in self.left:
                self.next_survey = 0.0  # to be tried again
                self.display.setback(self.left[outcome["run"]], outcome["status"], outcome["reason"])

    def on_fatal(self, member: Hand, value: str) -> None:
        raise OutputError(f"{value} (nothing finished is lost: the same command continues)")

    def on_too_small(self, member: Hand, value: int) -> None:
        raise PathsumError(
            f"a worker holds {value / 2**20:,.0f} MiB of memory before it trains anything, over its limit of "
            f"{self.crew.options['memory'] / 2**20:,.0f} MiB; allow more"
        )

    def lost(self, member: Hand) -> None:
        """A worker has ended: the next look at the store finds what it left."""
        code = self.crew.dismiss(member)
        self.next_survey = 0.0
        if member.ready:
            return
        self.early.append(code)
        if len(self.early) >= (MOST_KILLED if code == -9 else MOST_EARLY):
            raise PathsumError(
                f"{len(self.early)} workers in a row ended before they could train, the last with code {code} (-9 "
                "means killed, as when memory runs out); what they printed says why, or try fewer workers"
            )


def group_key(config: RunConfig) -> Hashable:
    """Equal for runs that can be trained as one program; None for one that must be alone."""
    from pathsum.training.stacked import stack_key

    if config.model_class != "ResidualTower" or config.activations != "plain":
        return None
    source = (config.data, config.train_limit, config.test_limit, config.data_seed)
    return (*source, stack_key(config.model, config.train))
