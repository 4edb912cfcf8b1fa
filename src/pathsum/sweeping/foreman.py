"""What runs on a Ray cluster: `Foreman`, the actor that owns a sweep's tasks so that they outlive its driver, and
`train`, the task. Nothing here knows the store's driver; what a task has to say is kept until a driver fetched it."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pathsum.sweeping.parcels import Parcel, pack, scratch, unpack, working_folder

KEEP = 24 * 3600.0  # seconds for which what a driver did not fetch is kept, once nothing runs
LETTER = 256 * 2**20  # bytes of files in one answer, or one message

Message = dict[str, Any]


class Foreman:
    """The tasks of a store, and what they said since a driver last fetched it."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.driver: dict[str, Any] = {}
        self.seen = time.monotonic()
        self.tasks: dict[str, dict[str, Any]] = {}  # by name; until the driver knows of their end
        self.refs: dict[str, Any] = {}  # of those that have not ended
        self.claims: dict[str, Message] = {}
        self.mail: list[tuple[int, str, Message]] = []
        self.count = 0
        threading.Thread(target=self._retire, daemon=True).start()

    def _retire(self) -> None:
        """End this actor when for long no driver came and nothing runs."""
        import ray

        while True:
            time.sleep(60.0)
            refs = list(self.refs.values())
            running = len(refs) > 0 and len(ray.wait(refs, num_returns=len(refs), timeout=0)[1]) > 0
            if not running and time.monotonic() - self.seen > KEEP:
                os._exit(0)

    def holder(self) -> tuple[dict[str, Any], float]:
        """The driver, and the seconds since it last asked for anything."""
        return self.driver, time.monotonic() - self.seen

    def attach(self, driver: dict[str, Any], before: dict[str, Any]) -> dict[str, Any] | None:
        """Serve another driver; None where meanwhile a third one was faster. It learns which tasks there are."""
        if self.driver != before:
            return None
        self.driver, self.seen = driver, time.monotonic()
        return {"token": self.token, "tasks": list(self.tasks.values()), "claims": self.claims}

    def detach(self) -> None:
        """Wait for the next driver."""
        self.driver = {}

    def submit(self, task: dict[str, Any], parcels: dict[str, Parcel] | None, options: dict[str, Any]) -> None:
        """Start a task: `options` are Ray's."""
        import ray

        options = dict(options)
        calls = {"max_calls": options.pop("max_calls")} if "max_calls" in options else {}
        remote = ray.remote(**calls)(train) if calls else ray.remote(train)
        me = ray.get_runtime_context().current_actor
        self.refs[task["name"]] = remote.options(**options).remote(task, parcels, me)
        self.tasks[task["name"]] = task

    def post(self, name: str, message: Message) -> None:
        """Keep what a task says; of the files of a run only the last."""
        if "claimed" in message:
            self.claims[name] = message
        if "files" in message:
            same = ("files", message["folder"])
            self.mail = [m for m in self.mail if m[1] != name or ("files", m[2].get("folder")) != same]
        self.count += 1
        self.mail.append((self.count, name, message))

    def fetch(self, known: int) -> tuple[list[tuple[int, str, Message]], int]:
        """What was said after message number `known`, and how many tasks have not ended; forgets what came before."""
        self.seen = time.monotonic()
        for number, name, message in self.mail:
            if number <= known and message.get("over"):
                self.tasks.pop(name, None)
                self.claims.pop(name, None)
        self.mail = [m for m in self.mail if m[0] > known]
        self._collect()
        size = 0
        letters: list[tuple[int, str, Message]] = []
        for letter in self.mail:
            size += sum(map(len, letter[2].get("files", {}).values()))
            if letters and size > LETTER:
                break
            letters.append(letter)
        return letters, len(self.refs)

    def _collect(self) -> None:
        """Take in the tasks that have ended."""
        import ray

        refs = list(self.refs.items())
        if not refs:
            return
        over, _ = ray.wait([ref for _, ref in refs], num_returns=len(refs), timeout=0)
        for name, ref in refs:
            if ref in over:
                del self.refs[name]
                self.post(name, {**ending(ref), "over": True})

    def cancel(self) -> None:
        """Interrupt every task: those in training write a checkpoint first."""
        import ray

        for ref in self.refs.values():
            ray.cancel(ref, force=False, recursive=False)


def ending(ref: Any) -> Message:
    """What a task that has ended returned, or what ended it."""
    import ray
    from ray import exceptions

    accidents = (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
    )
    try:
        return dict(ray.get(ref))
    except exceptions.TaskCancelledError:
        return {"lost": "cancelled"}
    except accidents as error:
        return {"lost": str(error).split("\n")[0][:200] or type(error).__name__}
    except Exception as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1:]
        return {"refused": f"a task could not run on the cluster: {' '.join(last)[:300]}"}


def train(task: dict[str, Any], parcels: dict[str, Parcel] | None, foreman: Any) -> Message:
    """A task: train runs, in the store where this machine sees it, else on files that came with the order."""
    import ray

    from pathsum.errors import OutputError
    from pathsum.sweeping.work import work_group

    here = {"host": platform.node(), "pid": os.getpid()}

    def claimed(folders: list[str]) -> None:
        foreman.post.remote(task["name"], {"claimed": folders, **here})

    with working_folder(task["cwd"]):
        problem = without_data(task)
        if problem:
            return {"refused": f"node {here['host']} cannot read the data: {problem} (at the same path on every node)"}
        try:
            if parcels is None:
                if not Path(task["probe"]).is_file():
                    return {"unshared": here["host"]}
                outcomes = work_group(task["order"], task["root"], claimed=claimed, **task["options"])
                return {"ended": [outcome.to_json() for outcome in outcomes]}
            with scratch() as root:
                for folder, parcel in parcels.items():
                    unpack(root / folder, parcel)

                def send(folder: str) -> Any:
                    message = {"files": pack(root / folder), "folder": folder}
                    return foreman.post.remote(task["name"], message)

                with sending(root, list(parcels), send, task["every"]):
                    outcomes = work_group(task["order"], root, claimed=claimed, **task["options"])
                ray.get([send(folder) for folder in parcels])  # it has them before this task ends
                return {"ended": [outcome.to_json() for outcome in outcomes]}
        except OutputError as error:
            return {"fatal": f"node {here['host']}: {error}"}


@contextmanager
def sending(root: Path, folders: list[str], send: Callable[[str], Any], every: float) -> Iterator[None]:
    """Send each new checkpoint while the block runs, at most one in `every` seconds a run."""
    from pathsum import runs

    over = threading.Event()

    def watch() -> None:
        sent = {folder: written(root / folder / runs.CHECKPOINT) for folder in folders}
        while not over.wait(every):
            for folder in folders:
                now = written(root / folder / runs.CHECKPOINT)
                if now and now != sent[folder] and not (root / folder / runs.DONE).exists():
                    with suppress(OSError):
                        send(folder)
                    sent[folder] = now

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def written(path: Path) -> int:
    """When a file was last written; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def without_data(task: Mapping[str, Any]) -> str:
    """Why this machine cannot read the data of a task; empty where it can (which are then at hand)."""
    from pathsum.errors import DataError
    from pathsum.sweeping.config import RunConfig
    from pathsum.sweeping.work import _load, default_device

    device = task["options"]["device"] or default_device()
    for config in map(RunConfig.from_json, task["order"]):
        try:
            _load(config.data, device, config.train_limit, config.test_limit, config.data_seed)
        except DataError as error:
            return str(error)
        except Exception:  # as a run's own error: recorded with it
            return ""
    return ""


def look(probe: str) -> dict[str, Any]:
    """What a node is: whether it sees the store, and which pathsum it has."""
    import pathsum

    return {"host": platform.node(), "version": pathsum.__version__, "sees": Path(probe).is_file()}
