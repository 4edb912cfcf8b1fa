"""A worker process: takes runs from its supervisor by its standard input, one line of JSON each, and says what became
of them on its standard output. There is nothing it shares with other workers but the store.

Where the supervisor dies the input ends; the worker then writes a checkpoint and ends too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from queue import SimpleQueue
from types import FrameType
from typing import Any

STARTER = "import json, sys; first = json.loads(sys.stdin.readline()); sys.path[:] = first.pop('path'); "
STARTER += "from pathsum.sweeping.worker import main; main(first)"


class Worker:
    """What the worker's threads know of each other."""

    def __init__(self) -> None:
        self.orders: SimpleQueue[list[dict[str, Any]] | None] = SimpleQueue()
        self.stopping = self.idle = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM outside of a training."""
        self.stopping = True
        if self.idle:
            raise SystemExit(0)

    def listen(self) -> None:
        """Pass on the orders until there will be no more; then see to it that this process ends."""
        for line in sys.stdin:
            self.orders.put(json.loads(line))
        self.stopping = True
        self.orders.put(None)
        while True:  # a training that begins just now would miss a single signal
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)


def main(options: dict[str, Any]) -> None:
    """Train what is asked for until told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor too, which decides
    worker = Worker()
    signal.signal(signal.SIGTERM, worker.on_signal)
    threading.Thread(target=worker.listen, daemon=True).start()
    serve(worker, own_output(), options)


def serve(worker: Worker, answers: int, options: dict[str, Any]) -> None:
    """Take orders, one at a time."""
    from pathsum.errors import OutputError
    from pathsum.sweeping.work import resident, work_group

    limit = options["memory"]
    if limit and resident() > limit:
        say(answers, too_small=resident())
        return
    say(answers, ready=True)
    while not worker.stopping:
        worker.idle = True
        order = worker.orders.get()
        worker.idle = False
        if order is None or worker.stopping:
            return
        try:
            outcomes = work_group(order, claimed=lambda names: say(answers, claimed=names), **options)
        except OutputError as error:
            say(answers, fatal=str(error))
            return
        say(answers, ended=[outcome.to_json() for outcome in outcomes])
        if any(outcome.status == "memory" for outcome in outcomes):
            return  # only a new process gives all of it back


def own_output() -> int:
    """The standard output for answers alone: what else is printed goes to the standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def say(answers: int, **message: Any) -> None:
    """Tell the supervisor something; where it is gone, `listen` notices."""
    with suppress(BrokenPipeError):
        os.write(answers, (json.dumps(message) + "\n").encode())
