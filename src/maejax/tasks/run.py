"""The life of a run: its directory and checkpoints, a start or a resumption, the messages, the loop, the end."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from maejax.config import Config, flags, with_flags
from maejax.data.lanes import merge_positions
from maejax.data.pipeline import Loader
from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.distributed.processes import all_processes, broadcast_from_0, name_of
from maejax.errors import Failed, InputError
from maejax.pages.run_page import RunPage
from maejax.recipes import recipe
from maejax.storage import mirror
from maejax.storage.bucket_lock import held_in_bucket
from maejax.storage.lock import held
from maejax.tasks.checks import (
    RATE,
    compute_of,
    differences,
    run_differences,
    safe_flags,
    shared_flags,
    traced_steps,
    warnings_of,
)
from maejax.tasks.configured import configured_rate, run_directory
from maejax.tasks.fast_forms import choose_forms
from maejax.tasks.scheduled import evaluate_due, open_evaluations
from maejax.tasks.task import Task
from maejax.training.bucket_checkpoints import open_checkpoints
from maejax.training.checkpoint import saved_steps
from maejax.training.log import Callback, RunLog, read_lines
from maejax.training.loop import Feed, Intervals, RunContext, fit
from maejax.training.mesh import gather, make_mesh
from maejax.training.rundir import BEST, CHECKPOINTS, CONFIG, open_run, read_config
from maejax.training.state import TrainState, abstract_state, create_state, with_slots
from maejax.training.trace import Trace
from maejax.training.trackers import TensorBoard, Tracker, WandB
from maejax.version import __version__


@dataclass(frozen=True)
class Finished:
    """The result of a run: its directory, the model, and whether it got to the last step."""

    directory: Path
    model: Any
    done: bool


@contextmanager
def prepared(task: Task) -> Iterator[None]:
    """Check a task in all processes, and hold the directory of its run.

    Raises InputError if something is wrong or the processes differ, and Failed if another process trains there.
    """
    task.prepare()
    check_same(task)
    directory, shown = run_directory(task.config), mirror.shown(run_directory(task.config))
    with ExitStack() as stack:
        problem: Exception | None = None
        if jax.process_index() == 0:
            try:
                remedy = "wait for it, stop it, or choose another --name"
                stack.enter_context(held(directory, shown, remedy))
                stack.enter_context(held_in_bucket(directory, remedy))
            except Failed as error:
                problem = error
            except OSError as error:
                problem = InputError(f"{shown} cannot be written ({error.strerror}); choose another --output-dir")
        if not all_processes(problem is None):
            raise problem or Failed(f"{name_of(0)} cannot hold the directory of the run; see what it says")
        yield


def check_same(task: Task) -> None:
    """Check that all processes have the same flags and see the same data. Raises InputError that names a difference."""
    source, given = task.source, shared_flags(task.config)
    own = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    own |= {"maejax": __version__, "number of images": source.total, "classes": list(source.classes)}
    if isinstance(source, Stream):
        own["shards"] = [shard.name for shard in source.shards]
    first, *others = gather(own, make_mesh())
    for number, facts in enumerate(others, 1):
        if wrong := [name for name in first if facts[name] != first[name]]:
            name = wrong[0]
            values = f": {facts[name]} against {first[name]}" if len(str(first[name])) < 200 else ""
            raise InputError(
                f"{name_of(number)} and {name_of(0)} differ in {', '.join(wrong)}{values}; start all processes with "
                "the same command, the same version and the same data"
            )


def train(task: Task, console: Console, callbacks: Sequence[Callback] = ()) -> Finished:
    """Do a task: start the run of its flags, or resume it.

    Raises InputError if the input is wrong, and Failed if the loss became non-finite.
    """
    with prepared(task):
        return train_prepared(task, console, callbacks)


def train_prepared(task: Task, console: Console, callbacks: Sequence[Callback] = ()) -> Finished:
    """Train a task that is `prepared`."""
    config, directory = task.config, run_directory(task.config)
    first = jax.process_index() == 0
    console = console if first else Console(quiet=True)
    newest, written = open_directory(task)

    mesh, sharding = make_mesh(), config.machine.sharding
    compute, forms = choose_forms(config, task.model)
    phase, *later = (phase for phase in task.phases(compute) if phase.stop >= newest)
    loader, stop = task.open_loader(), [phase, *later][-1].stop
    with (
        mirror.published(directory),
        open_checkpoints(directory / CHECKPOINTS, config.run.keep_checkpoints) as checkpoints,
        open_checkpoints(directory / BEST, 1) as best,
    ):
        if newest:
            state, start, position = checkpoints.restore(abstract_state(phase.init, phase.optimizer, mesh, sharding))
        else:
            state, start, position = create_state(phase.init, phase.optimizer, mesh, sharding), 0, None
            state = task.start_from_weights(state)
        trackers = open_trackers(config, directory, start, written) if first else []
        with (
            RunLog(directory, start, stop, console, first=first, trackers=trackers, callbacks=callbacks) as log,
            Trace(directory / "profile" / str(jax.process_index()), *traced_steps(config)) as trace,
        ):
            announce(task, log, state, start, forms, loader)
            evaluations, evaluated = open_evaluations(task, mesh, state, start, best, log)
            stops = [each.stop for each in (phase, *later)]
            evaluate = partial(evaluate_due, evaluations, stops, best, log) if evaluations else None
            batches, given = loader.iterate(start, stop, position), config.run
            feed = Feed(
                map(task.check_batch, batches),
                config.data.train_batch_size,
                loader.position,
                merge_if_any,
                partial(count_faults, loader),
            )
            every = tuple(each.interval for each in evaluations)
            intervals = Intervals(given.save_interval, given.log_interval, every, given.save_minutes)
            explain = partial(task.explain, directory, mesh)
            while True:
                context = RunContext(start, phase.stop, intervals, checkpoints, log, trace)
                state, done = fit(
                    state,
                    phase.step,
                    feed,
                    context,
                    mesh=mesh,
                    evaluate=evaluate,
                    evaluated=evaluated,
                    explain=explain,
                    flop=phase.flop,
                )
                if not done or not later:
                    break
                start, evaluated, (phase, *later) = phase.stop, True, later
                log.message(f"step {start}: all is trained from here on")
                state = with_slots(state, phase.optimizer, mesh, sharding)
            batches.close()
            if loader.bad:
                log.message(f"{len(loader.bad)} unreadable images were left out, the first: {next(iter(loader.bad))}")
            if loader.lost:
                log.message(f"{len(loader.lost)} shards were not read to the end, the first: {next(iter(loader.lost))}")
    task.finish(directory, console)
    return Finished(directory, state.model, done)


def open_directory(task: Task) -> tuple[int, dict[str, Any]]:
    """Open the folder of a run, new or old: the step of its newest checkpoint, and what config.json holds.

    Raises InputError if it holds another run or the processes do not share it, and Failed if a bucket does not answer.
    """
    config, source, directory = task.config, task.source, run_directory(task.config)
    written = {
        "maejax": __version__,
        "flags": safe_flags(config),
        "model": task.model.to_json(),
        "compute": asdict(compute_of(config)),
        "images": source.total,
        "data": source.fingerprint() if isinstance(source, Source) else None,
        "classes": source.classes,
    }
    mirror.refresh(directory)
    step = max(saved_steps(directory / CHECKPOINTS), default=0)
    newest = open_run(
        directory,
        written,
        differences=run_differences(read_config(directory), written, step),
        resume=config.run.resume,
        first=jax.process_index() == 0,
    )
    if not all_processes(newest == broadcast_from_0(newest) and mirror.exists(directory / CONFIG)):
        raise InputError(
            f"the processes see different files in {mirror.shown(directory)}; --output-dir must be a folder they share"
        )
    return newest, written


def announce(task: Task, log: RunLog, state: TrainState, start: int, forms: list[str], loader: Loader) -> None:
    """Print what is about to be trained, on what and how."""
    config = task.config
    if config.run.ipaddr:
        log.message("--ipaddr is accepted for the original's scripts and ignored")
    if task.origin:
        log.message(f"weights  {task.origin}")
    if start:
        shown = mirror.shown(run_directory(config))
        stop = config.optimization.training_steps
        finished = f"{shown} is finished, at step {stop}: choose another --name, or more --training-steps"
        log.message(f"continuing {shown} from step {start} of {stop}" if start < stop else finished)
        if task.saved:
            for line in describe_changes(config, task.saved, start):
                log.message(line)
    log.message(task.describe(state))
    for line in forms:
        log.message(f"forms    {line}")
    log.message(f"loader   {loader.footprint}")
    for line in () if start else warnings_of(config, task.source.total, task.model.encoder.dim):
        log.message(f"warning  {line}")
    for source in (task.source, task.valid):
        for problem in source.problems[:5] if source is not None else ():
            log.message(f"data     {problem}")


def describe_changes(config: Config, saved: dict[str, Any], start: int) -> list[str]:
    """Describe what a run that goes on does otherwise than before: its data elsewhere, another schedule."""
    usual, given, lines = flags(recipe(config.run.mode)), flags(config), []
    before = usual | saved["flags"]
    if before["train_dataset_shards"] != (place := safe_flags(config)["train_dataset_shards"]):
        lines.append(f"data     the same images now come from {place}")
    if changed := differences(*({name: each[name] for name in RATE} for each in (before, given))):
        old = with_flags(config, **{name: before[name] for name in RATE})
        was, now = (f"{float(np.asarray(configured_rate(each)[0](start))):.3g}" for each in (old, config))
        lines.append(f"rate     {', '.join(changed)}: at step {start} {now}, was {was}")
    return lines


def open_trackers(config: Config, directory: Path, start: int, written: dict[str, Any]) -> list[Tracker]:
    """Open what a run logs to besides metrics.jsonl: what the flags name, and its page."""
    trackers: list[Tracker] = []
    if config.run.wandb:
        earlier = read_lines(directory / "metrics.jsonl") if (directory / "wandb-run.txt").exists() else []
        sent: dict[int, set[str]] = {}
        for line in earlier:
            sent.setdefault(line["step"], set()).update(line)
        trackers.append(WandB(directory, config.run.project, directory.name, written, sent))
    if config.run.tensorboard:
        trackers.append(TensorBoard(directory, start))
    return [*trackers, RunPage(directory, start)]


def count_faults(loader: Loader) -> dict[str, float]:
    """Count what this process's input left out so far."""
    return {"data/bad_images": float(len(loader.bad)), "data/lost_shards": float(len(loader.lost))}


def merge_if_any(positions: list[Any]) -> Any:
    """Merge the positions of all processes in a stream; None if the input has no position but its step."""
    return None if positions[0] is None else merge_positions(positions)
