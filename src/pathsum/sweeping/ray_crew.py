"""The driver's side of a sweep on a Ray cluster: orders to its tasks, what they say, and their files into the store."""

from __future__ import annotations

import os
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pathsum.errors import OutputError, PathsumError
from pathsum.storage import BusyError, writing
from pathsum.store import Store
from pathsum.sweeping.config import RunConfig
from pathsum.sweeping.crew import GRACE
from pathsum.sweeping.lease import Lease
from pathsum.sweeping.parcels import deliver, pack
from pathsum.sweeping.request import Request
from pathsum.sweeping.supervisor import MOST_EARLY

BEAT = 0.2  # seconds between two looks for mail
RETRIES = 3  # by Ray, of a task whose node died; in the store each is an attempt

Event = tuple["Slot", dict[str, Any]]


@dataclass(eq=False)
class Slot:
    """A task as its supervisor sees it, or the place for one."""

    crew: RayCrew
    name: str = ""  # of the task
    label: str = "queued"
    ready: bool = True
    order: list[RunConfig] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    since: float = 0.0
    leases: dict[str, Lease] = field(default_factory=dict)  # by folder: held here for a node without the store
    fetched: bool = False  # whether its files are sent there and back
    reason: str = ""  # why it was lost

    @property
    def waits(self) -> bool:
        """Whether it can be given an order."""
        return not self.order

    def send(self, order: Sequence[RunConfig]) -> None:
        """Submit a task."""
        self.order, self.running, self.since = list(order), [], time.monotonic()
        self.crew.submit(self)


class RayCrew:
    """The tasks of one sweep, as `Supervisor` wants them."""

    def __init__(
        self,
        store: Store,
        foreman: Any,
        known: dict[str, Any],
        request: Request,
        ray_options: dict[str, Any],
        *,
        every: float,
    ) -> None:
        self.store, self.foreman, self.request, self.ray_options = store, foreman, request, ray_options
        self.root, self.every = store.root.resolve(), every
        self.shared = True
        self.probe = self.root / f".probe.{known['token']}"
        self.options: dict[str, Any] = {
            "owner": f"ray sweep {os.getpid()}",
            "device": request.device,
            "threads": max(1, int(request.cpus or 1)),
            "memory": request.memory,
            "timeout": store.timeout,
            "max_attempts": store.max_attempts,
        }
        self.members: list[Slot] = []
        self.events = self
        self.said: deque[Event] = deque()
        self.known = 0  # the last message that was taken in
        self.early: list[str] = []  # why tasks ended in a row that had not begun
        self.unfinished = 0  # tasks that have not ended, at the last look
        self.kept = self.stopped = False
        self.over = threading.Event()
        with writing(self.probe):
            self.probe.touch()
        for task in known["tasks"]:
            self.adopt(task, known["claims"].get(task["name"], {}))
        threading.Thread(target=self.beat, daemon=True).start()

    # --- orders ---

    def slots(self) -> int:
        """How many tasks at a time."""
        from pathsum.sweeping.ray_engine import alive

        room = self.request.slots([node["Resources"] for node in alive()])
        return min(room, self.request.workers or room)

    def start(self) -> None:
        """A place for one more task."""
        self.members.append(Slot(self))

    def dismiss(self, member: Slot) -> int:
        """Forget a task that was lost."""
        self.members.remove(member)
        return 0

    def submit(self, slot: Slot) -> None:
        """Hand an order to the foreman; with the files, and the right to the runs here, where nodes lack the store."""
        import ray
        from ray.exceptions import RayActorError

        slot.name, slot.label, slot.fetched = secrets.token_hex(6), "queued", not self.shared
        parcels = None
        options = {**self.ray_options, "max_retries": RETRIES if self.shared else 0}
        if slot.fetched:
            self.claim(slot)
            slot.order = [config for config in slot.order if config.folder in slot.leases]
            if not slot.order:
                return
            parcels = {config.folder: pack(self.store.folder(config)) for config in slot.order}
        task = {
            "name": slot.name,
            "order": [config.to_json() for config in slot.order],
            "root": str(self.root),
            "probe": str(self.probe),
            "cwd": os.getcwd(),
            "every": self.every,
            "fetched": slot.fetched,
            "options": self.options,
        }
        try:
            ray.get(self.foreman.submit.remote(task, parcels, options))
        except RayActorError:
            self.replace()

    def claim(self, slot: Slot) -> None:
        """Take the runs of an order for this process, which will write them."""
        for config in slot.order:
            held = self.store.claim(config, self.options["owner"])
            if held is not None:
                slot.leases[config.folder] = held

    def adopt(self, task: dict[str, Any], claim: dict[str, Any]) -> None:
        """Take over a task of a driver that has died."""
        order = [RunConfig.from_json(record) for record in task["order"]]
        slot = Slot(self, name=task["name"], order=order, fetched=task["fetched"], since=time.monotonic())
        self.members.append(slot)
        if claim:
            slot.label, slot.running = f"{claim['host']}:{claim['pid']}", claim["claimed"]
        if slot.fetched:
            self.claim(slot)

    # --- mail ---

    def get(self, timeout: float) -> Event:
        """The next thing a task says, as `queue.Queue` has it."""
        deadline = time.monotonic() + timeout
        while not self.said:
            self.fetch()
            rest = deadline - time.monotonic()
            if not self.said and rest <= 0:
                raise queue.Empty
            if not self.said:
                time.sleep(min(BEAT, rest))
        return self.said.popleft()

    def fetch(self) -> int:
        """Take in the mail; returns how much there was. What was not taken in comes again."""
        import ray
        from ray.exceptions import RayActorError

        try:
            letters, self.unfinished = ray.get(self.foreman.fetch.remote(self.known))
        except RayActorError:
            self.replace()
            return 0
        for number, name, message in letters:
            slot = next((slot for slot in self.members if slot.name == name), None)
            if slot is not None:
                self.take(slot, message)
            self.known = number
        return len(letters)

    def take(self, slot: Slot, message: dict[str, Any]) -> None:
        """Act on what a task says, and pass it on."""
        if "claimed" in message or "ended" in message:
            self.early = []
        if "claimed" in message:
            slot.label = f"{message['host']}:{message['pid']}"
            self.said.append((slot, {"claimed": message["claimed"]}))
        elif "files" in message:
            self.receive(slot, message["folder"], message["files"])
        elif "ended" in message:
            outcomes = [self.settle(slot, outcome) for outcome in message["ended"]]
            self.said.append((slot, {"ended": outcomes}))
        elif "lost" in message:
            self.lose(slot, message["lost"])
        else:
            self.let_go(slot, "stopped")
            self.refuse(slot, message)

    def refuse(self, slot: Slot, message: dict[str, Any]) -> None:
        """A node cannot work: for one that does not see the store there is another way."""
        if "fatal" in message and not self.stopped:
            raise OutputError(f"{message['fatal']} (nothing finished is lost: the same command continues)")
        if "refused" in message and not self.stopped:
            raise PathsumError(message["refused"])
        if "unshared" in message and self.request.shared and not self.stopped:
            raise PathsumError(f"node {message['unshared']} does not see the store at {self.root}; mount it there")
        self.shared = self.shared and "unshared" not in message
        taken = [{"run": config.folder, "status": "taken", "reason": ""} for config in slot.order]
        self.said.append((slot, {"ended": taken}))

    def receive(self, slot: Slot, folder: str, files: dict[str, bytes]) -> None:
        """Write what a node sent into the store, if the run is still ours."""
        held = slot.leases.get(folder)
        if held is None or not held.heartbeat():
            return
        try:
            deliver(held.folder, files)
        except BusyError:
            slot.leases.pop(folder, None)  # somebody trains there without asking the store
        except OutputError:
            self.kept = True  # with the foreman, until there is room
            raise

    def settle(self, slot: Slot, outcome: dict[str, Any]) -> dict[str, Any]:
        """Record the end of a run that was trained elsewhere; one that is not in the store is not over."""
        if not slot.fetched:
            return outcome
        held = slot.leases.pop(outcome["run"], None)
        if held is None or not held.heartbeat():
            return {**outcome, "status": "taken"}
        status = outcome["status"]
        held.release(status, outcome["reason"] if status in ("failed", "error", "memory") else "")
        return outcome

    def lose(self, slot: Slot, reason: str) -> None:
        """A task has died: its runs go on from the last checkpoint in the store."""
        self.let_go(slot, "interrupted" if reason == "cancelled" else "died")
        if not slot.running and not self.stopped:
            self.early.append(reason)
            if len(self.early) >= MOST_EARLY * max(len(self.members), 1):
                raise PathsumError(
                    f"{len(self.early)} tasks in a row ended before they could train, the last so: {reason}; Ray's "
                    "logs on the nodes say more"
                )
        slot.reason = reason
        self.said.append((slot, {}))

    def let_go(self, slot: Slot, status: str) -> None:
        """Give back the runs of a task."""
        while slot.leases:
            _, held = slot.leases.popitem()
            with suppress(OutputError):
                held.release(status)

    def beat(self) -> None:
        """Say that the runs which nodes train for this process are alive."""
        while not self.over.wait(min(self.store.timeout / 6, 10.0)):
            for slot in list(self.members):
                for folder, held in list(slot.leases.items()):
                    if not held.heartbeat():
                        slot.leases.pop(folder, None)

    # --- ends ---

    def replace(self) -> None:
        """The foreman has died, with its node, and its tasks with it: begin with another one."""
        from pathsum.sweeping.ray_engine import hire

        self.unfinished = 0
        for slot in self.members:
            if slot.order:
                self.lose(slot, "the node of the tasks' owner has died")
        if self.stopped:
            return
        self.probe.unlink(missing_ok=True)
        self.foreman, known = hire(self.store)
        self.known, self.probe = 0, self.root / f".probe.{known['token']}"
        with writing(self.probe):
            self.probe.touch()
        for task in known["tasks"]:
            self.adopt(task, known["claims"].get(task["name"], {}))

    def stop(self) -> None:
        """Let every task write its checkpoint and end, fetch what they have, and dismiss the foreman."""
        import ray
        from ray.exceptions import RayActorError

        if self.stopped:
            return
        self.stopped = True
        try:
            with suppress(OutputError):
                self.halt(time.monotonic() + GRACE)
        finally:
            self.over.set()
            for slot in self.members:
                self.let_go(slot, "interrupted")
            if self.kept:
                with suppress(RayActorError):
                    ray.get(self.foreman.detach.remote())
            else:
                ray.kill(self.foreman)
                with suppress(OSError):
                    self.probe.unlink(missing_ok=True)

    def halt(self, deadline: float) -> None:
        """Interrupt the tasks and wait for their ends."""
        import ray
        from ray.exceptions import RayActorError

        if any(slot.order for slot in self.members):
            with suppress(RayActorError):
                ray.get(self.foreman.cancel.remote())
        while self.fetch() or (self.unfinished and time.monotonic() < deadline):
            time.sleep(0.05)
