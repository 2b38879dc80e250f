"""Several processes as one run: how they find each other, what they agree on, how they end when one is gone."""

import atexit
import os
import sys
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils

from maejax.distributed.rendezvous import Peers, meet
from maejax.errors import Failed, InputError

JOIN_SECONDS = 300  # hosts of a pod may start minutes apart
SILENT_SECONDS = 30  # a process that is not heard of for so long is dead, and the others end

_peers: Peers | None = None


def join(*, distributed: bool, coordinator: str, num_processes: int, process_id: int) -> bool:
    """Make this process one of a run of several; call before anything touches a device. Never falls back to one host.

    Args:
        distributed: find the others through the TPU pod, SLURM, Open MPI or Kubernetes that started this process.
        coordinator: HOST:PORT of process 0 where nothing starts them together, with `num_processes` and `process_id`
            (from 0). "", 0 and -1, and not `distributed`: this process is alone, and nothing happens.

    Returns:
        Whether this is the first process, which speaks for all.

    Raises:
        InputError: the flags do not fit together, or there is no such cluster.
        Failed: others have not come; the message names them.

    """
    global _peers
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id >= 0}
    missing = [flag for flag, value in given.items() if not value]
    if len(missing) < 3 and (missing or distributed):
        wrong = "without " + " and ".join(missing) if missing else "with --distributed"
        raise InputError(f"--coordinator, --num-processes and --process-id belong together: {wrong} they say nothing")
    if missing and not distributed:
        return True
    if not missing and not (":" in coordinator and 0 <= process_id < num_processes):
        raise InputError(
            f"--coordinator {coordinator} --num-processes {num_processes} --process-id {process_id}: give HOST:PORT, "
            "the number of processes and this one's number, from 0"
        )
    # A stop is agreed on by the loop itself, see `Agreement`; JAX's service would catch SIGTERM before it.
    jax.config.update("jax_enable_preemption_service", False)
    initialize = partial(
        jax.distributed.initialize,
        initialization_timeout=JOIN_SECONDS,
        heartbeat_timeout_seconds=SILENT_SECONDS,
        shutdown_timeout_seconds=SILENT_SECONDS,
    )
    local_devices = None
    if missing:
        try:
            coordinator, num_processes, process_id, local_devices = detect()
        except ValueError as error:
            raise InputError(
                f"--distributed: no TPU pod, SLURM, Open MPI or Kubernetes job was found that started this process "
                f"({error}); leave it out on a single host, or give --coordinator, --num-processes and --process-id"
            ) from None
    _peers = meet(coordinator, num_processes, process_id, JOIN_SECONDS)
    try:
        initialize(coordinator, num_processes, process_id, local_devices, cluster_detection_method="deactivate")
    except RuntimeError as error:  # of the coordination service
        raise Failed(f"the processes were not joined within {JOIN_SECONDS} s: {first_line(error)}") from None
    atexit.register(_peers.say_goodbye, 0)  # before JAX's own, which waits for the others
    sys.excepthook = _end_at_once
    if jax.process_count() != num_processes:
        raise InputError(
            f"{num_processes} processes were joined, but JAX sees {jax.process_count()}; nothing was trained"
        )
    return jax.process_index() == 0


def detect() -> tuple[str, int, int, Sequence[int] | None]:
    """Ask what started this process for the coordinator, the number of processes, this one's, and its devices.

    Raises:
        ValueError: nothing that JAX knows started it, or it was started alone.

    """
    from jax._src.clusters import ClusterEnv  # what `jax.distributed.initialize` asks; there is no public name for it

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, JOIN_SECONDS)
    coordinator, count, process, devices = found
    if coordinator is None or count is None or process is None:
        raise ValueError("none of the clusters that JAX knows")
    if count < 2:
        raise ValueError("there is one process alone")
    return coordinator, count, process, devices


def name_of(process: int) -> str:
    """Name a process of this run, with its host where that is known."""
    return _peers.names[process] if _peers is not None else f"process {process}"


def lost_peers(seconds: float = 0.0) -> str:
    """Name the processes that ended before this one, and how; "" if none. Waits so long for news."""
    return _peers.lost(seconds) if _peers is not None else ""


def share(value: float) -> float:
    """Return process 0's value to all processes, which must all call this."""
    bits = np.array([value], np.float64).view(np.uint32)  # JAX would round a float64
    return float(np.asarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)[0])


def everywhere(true: bool) -> bool:
    """Tell whether something is true in all processes, which must all call this."""
    return bool(np.all(multihost_utils.process_allgather(np.array(true))))


def leave(code: int) -> int:
    """Return an exit code; one of several processes ends at once, since a tidy end would wait for the others."""
    if code and jax.distributed.is_initialized():
        if _peers is not None:
            _peers.say_goodbye(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _end_at_once(kind, error, trace) -> None:
    sys.__excepthook__(kind, error, trace)
    leave(1)


def first_line(error: BaseException) -> str:
    """Shorten an error of a library, or what caused it, to what fits into a sentence."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
