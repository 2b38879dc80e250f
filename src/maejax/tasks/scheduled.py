"""The evaluations of a run, each in its own interval: the validation, and what watches quality."""

from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from maejax.distributed.processes import broadcast_from_0
from maejax.tasks.configured import run_directory
from maejax.tasks.task import Evaluator, Task
from maejax.training.checkpoint import Checkpoints
from maejax.training.ema import as_evaluated
from maejax.training.log import RunLog, evaluated_at
from maejax.training.loop import Watch, is_due
from maejax.training.state import TrainState


class Scheduled(NamedTuple):
    """An evaluator that is due every `interval` steps, and at the end; its metrics are named GROUP/..."""

    group: str
    interval: int
    evaluator: Evaluator


def open_evaluations(
    task: Task, mesh: Mesh, state: TrainState, start: int, best: Checkpoints, log: RunLog
) -> tuple[list[Scheduled], bool]:
    """Open the evaluations of a run; return them, and whether the first state needs none."""
    directory, stop, found = run_directory(task.config), task.config.optimization.training_steps, []
    if task.valid is not None:
        evaluator = task.open_evaluator(task.valid, directory, mesh, start)
        found.append(Scheduled("val", task.config.run.eval_interval, evaluator))
        if start and evaluator.best_step == start:
            best.save(as_evaluated(state), start)  # the process before may have ended between the two saves
    if task.watched is not None:
        found.append(Scheduled("watch", *task.open_watch(task.watched, mesh)))
        log.message(f"watch    {len(task.watched)} images, every {found[-1].interval} steps")
    # A stop may have come before or in the evaluation of the step at which this run goes on.
    due = [each.group for each in found if is_due(start, each.interval, stop)] if start else []
    return found, all(broadcast_from_0(evaluated_at(directory / "metrics.jsonl", start, group)) for group in due)


def evaluate_due(
    evaluations: Sequence[Scheduled],
    stops: Sequence[int],
    best: Checkpoints,
    log: RunLog,
    state: TrainState,
    step: int,
    watch: Watch,
) -> dict[str, float]:
    """Evaluate a state by all that are due, send their pictures to the trackers, and save it if it is the best so far.

    `stops` are the ends of the run's phases. Returns all metrics.
    """
    metrics: dict[str, float] = {}
    for group, interval, evaluator in evaluations:
        if not is_due(step, interval, *stops):
            continue
        found, pictures = evaluator(state, step, watch)
        title = {"val": "valid"}.get(group, group)
        shown = ", ".join(f"{name.removeprefix(f'{group}/')} {value:.4g}" for name, value in found.items())
        log.message(f"{title:8} {shown}")
        if pictures is not None:
            log.picture(step, pictures)
        if evaluator.best_step == step:
            best.save(as_evaluated(state), step)
        metrics |= found
    return metrics
