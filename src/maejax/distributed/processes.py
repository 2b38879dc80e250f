"""Several processes as one run: start, agreement, and the end when one of them is lost."""

import atexit
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maejax.distributed.rendezvous import Peers, meet
from maejax.errors import Failed, InputError, install

JOIN_SECONDS = 300  # hosts of a pod may start minutes apart
NAMED_SECONDS = 30  # JAX's service, which names nobody, has that much more patience than `Peers`

# What srun, Open MPI and MPICH tell each process that they start: how many there are.
STARTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

_peers: Peers | None = None


def join(*, distributed: bool, coordinator: str, num_processes: int, process_id: int, silent_seconds: int = 60) -> bool:
    """Join the processes of a run before a device is touched; return whether this is process 0, which alone writes.

    With `distributed`, the TPU pod, SLURM, Open MPI or Kubernetes job names the processes; otherwise `coordinator`
    (HOST:PORT of process 0), `num_processes` and `process_id` do. With none of these ("", 0, -1), the run has one
    process. A process that is silent for `silent_seconds` ends the run. Raises InputError if flags do not fit or there
    is no such job, Failed with the names of missing processes, or if the job does not answer.
    """
    global _peers
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id >= 0}
    missing = [flag for flag, value in given.items() if not value]
    if len(missing) < 3 and (missing or distributed):
        wrong = "without " + " and ".join(missing) if missing else "with --distributed"
        raise InputError(f"--coordinator, --num-processes and --process-id belong together: {wrong} they say nothing")
    if missing and not distributed:
        if in_slurm_script() and (nodes := os.environ.get("SLURM_JOB_NUM_NODES", "1")) != "1":
            raise InputError(
                f"this SLURM job has {nodes} nodes, and one of them would train: write srun before the command and "
                "give --distributed, or write srun --nodes=1 --ntasks=1"
            )
        count = max(int(os.environ.get(name) or 1) for name in STARTED)
        if count > 1:
            raise InputError(
                f"a launcher started {count} processes, and each would train by itself: give --distributed"
            )
        return True
    if not missing and not (":" in coordinator and 0 <= process_id < num_processes):
        raise InputError(
            f"--coordinator {coordinator} --num-processes {num_processes} --process-id {process_id}: give HOST:PORT, "
            "the number of processes and this one's number, from 0"
        )
    # The loop handles SIGTERM itself, see `training/consensus.py`; JAX's service would catch it first.
    jax.config.update("jax_enable_preemption_service", False)
    local_devices = None
    if missing:
        try:
            coordinator, num_processes, process_id, local_devices = detect()
        except InputError:
            raise
        except Exception as error:  # Kubernetes, metadata servers and name servers raise a dozen kinds
            raise Failed(
                f"--distributed: JAX could not ask for the processes of this job ({first_line(error)}); in Kubernetes, "
                "the service account has to be allowed to read pods and jobs"
            ) from None
    _peers = meet(coordinator, num_processes, process_id, JOIN_SECONDS, silent_seconds)
    local_devices = own_devices(local_devices, _peers.together)
    try:
        options: dict[str, Any] = {"cluster_detection_method": "deactivate", "initialization_timeout": JOIN_SECONDS}
        patience = silent_seconds + NAMED_SECONDS
        options |= {"heartbeat_timeout_seconds": patience, "shutdown_timeout_seconds": patience}
        jax.distributed.initialize(coordinator, num_processes, process_id, local_devices, **options)
    except RuntimeError as error:  # of the coordination service
        raise Failed(f"the processes were not joined within {JOIN_SECONDS} s: {first_line(error)}") from None
    atexit.register(_peers.announce_end, 0)  # runs before JAX's own handler, which waits for the others
    sys.excepthook = _end_at_once
    if jax.process_count() != num_processes:
        raise InputError(
            f"{num_processes} processes were joined, but JAX sees {jax.process_count()}; nothing was trained"
        )
    return jax.process_index() == 0


def detect() -> tuple[str, int, int, Sequence[int] | None]:
    """Return coordinator, number of processes, this one's number and devices; raises InputError without a cluster."""
    from jax._src.clusters import ClusterEnv  # `jax.distributed.initialize` uses it; it has no public name

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, JOIN_SECONDS)
    coordinator, count, process, devices = found
    if coordinator is not None and count is not None and process is not None and count > 1:
        return coordinator, count, process, devices
    alone = "write srun before the command" if in_slurm_script() else "leave it out on a single host"
    remedy = f"{alone}, or give --coordinator, --num-processes and --process-id"
    if "KUBERNETES_SERVICE_HOST" in os.environ and importlib.util.find_spec("kubernetes") is None:
        remedy = f"JAX asks Kubernetes by its package: {install('k8s')}"
    why = "it is one process alone" if count == 1 else "none of those that JAX knows"
    raise InputError(
        "--distributed: no TPU VM, GKE TPU pod, SLURM, Open MPI or Kubernetes job was found that started this process "
        f"({why}); {remedy}"
    )


def in_slurm_script() -> bool:
    """Return whether this process belongs to a SLURM job, but was not started by srun."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ


def own_devices(detected: Sequence[int] | None, processes: int) -> Sequence[int] | None:
    """Return which GPUs a process takes of those it sees, None for all, if `processes` of the run are on its host.

    JAX detects one for each process that SLURM or Open MPI started: the one of its number on the host. That is wrong
    if there is one process for all GPUs, or if each process sees no GPU but its own. JAX reads JAX_LOCAL_DEVICE_IDS.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    own = "JAX_LOCAL_DEVICE_IDS" in os.environ or processes == 1 or (len(shown) == 1 and shown != [""])
    return None if own else detected


def name_of(process: int) -> str:
    """Return a name for a process of this run, with its host if that is known."""
    return _peers.names[process] if _peers is not None else f"process {process}"


def lost_peers(seconds: float = 0.0) -> str:
    """Return a sentence on the processes that ended before this one, "" if none; wait at most `seconds` for one."""
    return _peers.lost(seconds) if _peers is not None else ""


def broadcast_from_0(value: float) -> float:
    """Return process 0's value. All processes must call this."""
    bits = np.array([value], np.float64).view(np.uint32)  # since JAX would round a float64
    return float(np.asarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)[0])


def arrays_of_0(arrays: Any) -> Any:
    """Return process 0's tree of NumPy arrays of at most 32 bits. All processes must call this."""
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(arrays))


def all_processes(true: bool) -> bool:
    """Return whether `true` is True in all processes. All processes must call this."""
    return bool(np.all(multihost_utils.process_allgather(np.array(true))))


def leave(code: int) -> int:
    """Return an exit code; if it is an error and there are several processes, end this one at once instead."""
    if code and jax.distributed.is_initialized():
        if _peers is not None:  # a tidy end would wait for them
            _peers.announce_end(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _end_at_once(kind, error, trace) -> None:
    sys.__excepthook__(kind, error, trace)
    leave(1)


def first_line(error: BaseException) -> str:
    """Return the first line of the root cause of an error, at most 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
