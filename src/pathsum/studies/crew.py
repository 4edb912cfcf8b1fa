"""Jobs that wait for each other, done by processes of this machine, with how far they are and the time left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

from pathsum.errors import PathsumError
from pathsum.progress import bar
from pathsum.sweep import terminable

J = TypeVar("J", bound=Hashable)
LOOK = 2.0  # seconds between two looks at how far the work is


class Hand(NamedTuple):
    """A process that does one job after another."""

    process: Any
    line: Connection


def do_all(
    jobs: Sequence[J],
    needs: Mapping[J, Iterable[J]],
    do: Callable[[J], None],
    *,
    done: Iterable[J],
    workers: int,
    total: int,
    taken: Callable[[], int],
    label: str,
) -> None:
    """Do the jobs that are not done, each once what it needs is; `do` is called in one of `workers` processes.

    `do` must be importable there, with its arguments. total: all steps there are, `taken` those taken so far, for the
    bar. Raises what a job raised, as a `PathsumError`, once the others are stopped and safe; a job that SIGTERM
    reaches is to keep its state and raise. With one worker everything happens in this process.
    """
    finished = set(done)
    left = [job for job in jobs if job not in finished]
    if workers == 1 or len(left) < 2:
        for job in left:
            do(job)
        return
    context = multiprocessing.get_context("spawn")
    idle: list[Hand] = []
    busy: dict[Hand, J] = {}
    with terminable(), bar(label, total, done=(shown := taken())) as update, stopping(idle, busy):
        for _ in range(min(workers, len(left))):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, do), daemon=True)
            process.start()
            there.close()
            idle.append(Hand(process, here))
        while left or busy:
            for job in [job for job in left if finished.issuperset(needs[job])][: len(idle)]:
                hand = idle.pop()
                hand.line.send(job)
                busy[hand] = job
                left.remove(job)
            ready = wait([hand.line for hand in busy], timeout=LOOK)
            for hand in [hand for hand in busy if hand.line in ready]:
                job = busy.pop(hand)
                answer = received(hand, job)
                if answer is not None:
                    raise PathsumError(answer)
                finished.add(job)
                idle.append(hand)
            now = taken()
            update(now - shown)
            shown = now


def received(hand: Hand, job: object) -> str | None:
    """What a process says of its job: nothing where it is done, else why not."""
    try:
        answer: str | None = hand.line.recv()
    except (EOFError, OSError):
        hand.process.join(1)
        code = hand.process.exitcode
        name = getattr(job, "name", job)
        return (
            f"the process that did {name} died (exit code {code}; −9 is often too little memory): run the same command "
            "again, with fewer --workers"
        )
    return answer


@contextmanager
def stopping(idle: Sequence[Hand], busy: Mapping[Hand, object]) -> Iterator[None]:
    """Let no process outlive the block: those at work get SIGTERM, upon which they keep what they have."""
    try:
        yield
    finally:
        for hand in (*idle, *busy):
            hand.line.close()
            if hand in busy and hand.process.is_alive():
                hand.process.terminate()
        for hand in (*idle, *busy):
            hand.process.join()


def serve(line: Connection, do: Callable[[Any], None]) -> None:
    """Do the jobs that come, until none can come any more; the process ends with the one that started it."""
    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the first one passes it on
    while True:
        try:
            job = line.recv()
        except (EOFError, OSError):
            return
        try:
            do(job)
            answer = None
        except PathsumError as error:
            answer = f"{error}"
        except Exception as error:
            answer = f"{getattr(job, 'name', job)}: {type(error).__name__}: {error}"
        try:
            line.send(answer)
        except OSError:
            return


def follow() -> None:
    """When the process that started this one is gone, however it went, stop as upon SIGTERM."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
