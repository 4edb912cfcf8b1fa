"""The engine "ray": a sweep's runs as tasks of a Ray cluster (Ray Core alone).

The tasks belong to a detached actor (`foreman`), so they go on where the driver dies; the next driver of the same
store on the same machine takes them over.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pathsum
from pathsum.errors import PathsumError
from pathsum.store import Store
from pathsum.sweeping import lease
from pathsum.sweeping.config import RunConfig
from pathsum.sweeping.request import Request

NAMESPACE = "pathsum"
PATIENCE = 5.0  # seconds for the cluster's port to answer
PROBE = 120.0  # seconds for a node to say whether it sees the store
FETCH = 60.0  # seconds between two checkpoints of a run that are fetched from a node without the store


def sweep_on_cluster(
    store: Store,
    left: Sequence[RunConfig],
    request: Request,
    *,
    stack: int,
    describe: Callable[[RunConfig], str],
    progress: bool | None,
) -> None:
    """Train runs on the cluster at `request.address`, until each is finished or failed.

    Raises PathsumError: no Ray, no cluster at the address, no node that has what a task asks for, another pathsum on
    a node, data that a node cannot read; OutputError: the store, or a node's disk, cannot be written to.
    """
    from pathsum.sweep import terminable
    from pathsum.sweeping.display import Display
    from pathsum.sweeping.ray_crew import RayCrew
    from pathsum.sweeping.ray_supervisor import ClusterSupervisor

    with connected(request.address):
        nodes = alive()
        request = request.complete([node["Resources"] for node in nodes])
        lacking = request.missing([node["Resources"] for node in nodes])
        if lacking:
            raise PathsumError(f"{lacking}; ask for less (--cpus, --gpus, --memory), or add such a node")
        with terminable():
            foreman, known = hire(store)
            crew = RayCrew(store, foreman, known, request, ray_options(request), every=FETCH)
            try:
                crew.shared = find_shared(crew.probe, nodes, request)
                count = min(crew.slots(), len(left))
                with Display(store, len(left), describe, workers=count, show=progress) as display:
                    ClusterSupervisor(store, left, crew, display, workers=count, stack=stack).run()
            finally:
                crew.stop()


def ray_options(request: Request) -> dict[str, Any]:
    """How Ray is asked for a task."""
    options: dict[str, Any] = {"num_cpus": request.cpus, "scheduling_strategy": "SPREAD"}
    if request.gpus:
        options["num_gpus"] = request.gpus  # such a task has a process of its own: that gives back the GPU's memory
    if request.memory:
        options |= {"memory": request.memory, "max_calls": 1}  # only a new process gives all of it back
    return options


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """This process as a driver of the cluster; one that is connected already stays so."""
    try:
        import ray
    except ImportError:
        raise PathsumError("the engine 'ray' needs Ray; run: pip install 'pathsum[ray]'") from None
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    how = "'ray start --head' starts one and says its address"
    if not address:
        raise PathsumError(f"the engine 'ray' needs the cluster's --address HOST:PORT, or auto; {how}")
    if address != "auto" and not answers(address):
        raise PathsumError(f"no Ray cluster answers at {address}; check address and firewall, or {how}")
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        why = " ".join(str(error).split())[:300]
        raise PathsumError(f"cannot join the Ray cluster at {address}: {why}; {how}") from None
    try:
        yield
    finally:
        ray.shutdown()


def answers(address: str) -> bool:
    """Whether the port is open: Ray itself would try for ever."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (host and colon and port.isdigit()):
        raise PathsumError(f"--address is {address!r}, expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def alive() -> list[dict[str, Any]]:
    """The nodes of the cluster that are alive, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def hire(store: Store) -> tuple[Any, dict[str, Any]]:
    """The foreman of this store and machine that no living driver has, or a new one; and what it has in hand."""
    import ray
    from ray.exceptions import RayActorError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pathsum.sweeping.foreman import Foreman

    me = {**lease.whereabouts(), "sitting": secrets.token_hex(8)}
    where = hashlib.sha256(f"{platform.node()}:{store.root.resolve()}".encode()).hexdigest()[:16]
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    for number in range(1000):
        options = {"name": f"{where}-{number}", "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0}
        made: Any = ray.remote(Foreman)
        foreman = made.options(**options, get_if_exists=True, scheduling_strategy=here).remote(secrets.token_hex(8))
        try:
            driver, silent = ray.get(foreman.holder.remote())
            if driver and not lease.is_gone(driver) and silent < store.timeout:
                continue
            known = ray.get(foreman.attach.remote(me, driver))
        except RayActorError:
            continue  # just dismissed
        if known is not None:
            return foreman, known
    raise PathsumError(f"1000 drivers are at work on {store.root} from this machine; stop some")


def find_shared(probe: Path, nodes: Sequence[dict[str, Any]], request: Request) -> bool:
    """Whether every node that can have a task sees the store. Raises PathsumError for one that has no such pathsum."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pathsum.sweeping.foreman import look

    able = [node for node in nodes if request.fits(node["Resources"])]
    remote: Any = ray.remote(look).options
    asked = {
        remote(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(str(probe)): node
        for node in able
    }
    ready: list[Any] = []
    late, deadline = list(asked), time.monotonic() + PROBE
    while late and time.monotonic() < deadline:
        came, late = ray.wait(late, num_returns=len(late), timeout=1.0)
        ready += came
        there = {node["NodeID"] for node in alive()}
        late = [ref for ref in late if asked[ref]["NodeID"] in there]  # one that has died says nothing
    sees = not late
    for ref in ready:
        host = asked[ref]["NodeManagerHostname"]
        try:
            found = ray.get(ref)
        except (ray.exceptions.RayTaskError, ImportError) as error:
            why = [line for line in str(error).splitlines() if line.strip()][-1]
            raise PathsumError(f"node {host} cannot run pathsum ({why}); install the same one there") from None
        except ray.exceptions.RayError:
            continue  # it has just died
        if found["version"] != pathsum.__version__:
            raise PathsumError(
                f"node {host} has pathsum {found['version']}, and this machine {pathsum.__version__}; install the same"
            )
        sees = sees and found["sees"]
        if request.shared and not found["sees"]:
            raise PathsumError(
                f"node {host} does not see the store at {probe.parent}; mount it there, or leave shared out"
            )
    with suppress(Exception):
        for ref in late:
            ray.cancel(ref, force=True)
    return sees if request.shared is None else request.shared
