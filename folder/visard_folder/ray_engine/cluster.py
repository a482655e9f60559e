"""The Ray cluster that a run works on: joined, or started on this machine and ended with the run."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from visard_errors import MissingExtra, ServerRefused
from visard_preprocess.machine import cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from visard.connection import Connection

_OBJECT_STORE_BYTES = 200 * 2**20  # of a cluster of our own; only names and records are in it


@contextmanager
def cluster(address: str | None, workers: int | None, connections: Sequence[Connection]) -> Iterator[int]:
    """Join a cluster, or start one on this machine that ends with the run; gives the number of its cores."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nobody is told that Visard runs here
    try:
        import ray
        import ray.data  # noqa: F401 -- whether it is there too
    except ImportError as error:
        raise MissingExtra("ray", "the engine 'ray'") from error

    with ExitStack() as stack:
        if not ray.is_initialized():
            handler = signal.getsignal(signal.SIGTERM)
            if address is None:
                session = TemporaryDirectory(prefix="visard-", ignore_cleanup_errors=True)
                start_local(stack.enter_context(session), workers)
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            stack.callback(ray.shutdown)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray took it, and would end with another exit code
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        if len(nodes) > 1 and any(connection.local for connection in connections):
            raise ServerRefused(
                "a server on 127.0.0.1 is another one on every node: give an address that all nodes reach"
            )
        yield int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]


def start_local(folder: str, workers: int | None = None) -> None:
    """Start a Ray cluster on this machine, for this process.

    It listens on 127.0.0.1 only, has no dashboard, and does not spill objects to the disk.

    Args:
        folder: for Ray's logs and sockets; its path must be short.
        workers: cores to use; all by default.
    """
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=workers or cores(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        _system_config={"automatic_object_spilling_enabled": False},
    )
