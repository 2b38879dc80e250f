"""Flags of several processes that do one job together; the docstrings are their help text."""

from dataclasses import dataclass

from maejax.options.flag import flag


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How this process finds the others."""

    distributed: bool = flag(False, free=True)
    """This is one of several processes that a TPU pod, SLURM, Open MPI or Kubernetes started; fails if it is not."""
    coordinator: str = flag("", free=True, written=False)
    """HOST:PORT of process 0, if no launcher starts the processes; also give --num-processes and --process-id."""
    num_processes: int = flag(0, free=True, written=False)
    """Number of processes, for --coordinator."""
    process_id: int = flag(-1, free=True, written=False)
    """Number of this process, from 0, for --coordinator."""
    silent_seconds: int = flag(60, least=5, free=True)
    """Seconds without a sign of life, as of a paused host, after which a process counts as lost and the others end."""
