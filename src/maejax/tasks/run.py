"""What every task does around the loop: open the data, the run and its checkpoints, start or go on, tell, clean up."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console

from maejax.config import Config
from maejax.data.lanes import merge_positions
from maejax.data.pipeline import Batch
from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.distributed.processes import all_processes, broadcast_from_0
from maejax.errors import InputError
from maejax.models.description import MAE, Classifier, Compute
from maejax.storage import mirror
from maejax.tasks.checks import compute_of, precision, run_differences, safe_flags, traced_steps
from maejax.tasks.fast_forms import choose_forms
from maejax.training.bucket_checkpoints import open_checkpoints
from maejax.training.checkpoint import Checkpoints
from maejax.training.ema import as_evaluated
from maejax.training.log import RunLog, evaluated_at
from maejax.training.loop import Feed, Intervals, RunContext, Watch, fit
from maejax.training.mesh import make_mesh
from maejax.training.rundir import BEST, CHECKPOINTS, CONFIG, open_run, read_config
from maejax.training.state import TrainState, abstract_state, create_state
from maejax.training.trace import Trace
from maejax.training.trackers import TensorBoard, Tracker, WandB
from maejax.version import __version__


class Judge(Protocol):
    """Evaluates a state; `best_step` is the step at which it was best so far."""

    best_step: int

    def __call__(self, state: TrainState, step: int, watch: Watch) -> dict[str, float]:
        """Compute the metrics of a state; `watch` is laid around the batches, see `Evaluate`."""
        ...

    def picture_path(self, step: int) -> Path:
        """Where the pictures of a step are, if it has any."""
        ...


class Input(Protocol):
    """What gives batches: a `Loader`, or what stands in for one."""

    @property
    def bad(self) -> Mapping[str, str]:
        """What is wrong with each image that could not be read."""
        ...

    @property
    def lost(self) -> Mapping[str, str]:
        """What is wrong with each shard that was not read to its end."""
        ...

    @property
    def footprint(self) -> str:
        """How much of the host it takes, in words."""
        ...

    def iterate(self, start: int = 0, stop: int | None = None, position: Any = None) -> Any:
        """Yield batches `start` .. `stop`; can be closed."""
        ...

    def position(self) -> Any:
        """Say where it stands, as JSON holds it."""
        ...


@dataclass(frozen=True)
class Recipe:
    """All in which tasks differ.

    Args:
        model: its description.
        build: builds a function that makes it, the optimizer and the step of `make_step`, for a way to compute.
        start: puts pre-trained weights into a new state.
        source: the training images.
        loader: makes the input; called once the run is known to be able to start.
        check: checks a batch and returns it.
        judge: makes what evaluates, of (run directory, mesh, step to start from); None for no validation.
        describe: says in a few lines what is about to be trained.
        explain: `(directory, mesh, state, step, rows) -> sentences` on a loss that is not finite.
        weights: says where a new state's weights come from.
        flop: the arithmetic that an image is worth in a step, for `train/mfu`; 0 leaves it out.

    """

    model: MAE | Classifier
    build: Callable[[Compute], tuple[Callable[[], nnx.Module], optax.GradientTransformation, Callable]]
    start: Callable[[TrainState], TrainState]
    source: Source | Stream
    loader: Callable[[], Input]
    judge: Callable[[Path, Mesh, int], Judge] | None
    describe: Callable[[TrainState], str]
    explain: Callable[[Path, Mesh, TrainState, int, Batch], str]
    weights: str = ""
    flop: float = 0
    check: Callable[[Batch], Batch] = lambda batch: batch


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its directory, the last state, and whether it got to the last step."""

    directory: Path
    state: TrainState
    done: bool


def run_directory(config: Config) -> Path:
    """Where a run keeps everything; if that is an address, the folder of this process that stands for it."""
    output, name = config.run.output_dir, config.run.name or config.run.mode
    return mirror.work_folder(f"{output}/{name}", jax.process_index()) if "://" in output else Path(output) / name


@dataclass(frozen=True)
class Finished:
    """What a run leaves: its directory, the model, and whether it got to the last step."""

    directory: Path
    model: Any
    done: bool


def train(config: Config, recipe: Recipe, console: Console) -> Trained:
    """Train as a recipe says: start the run of these flags, or go on with it.

    Raises:
        InputError, InputError: the input is wrong.
        Failed: the loss became non-finite.

    """
    directory, source, optimization = run_directory(config), recipe.source, config.optimization
    first = jax.process_index() == 0
    console = console if first else Console(quiet=True)
    newest, written = open_directory(config, recipe.model, source)

    mesh, sharding = make_mesh(), config.machine.sharding
    compute, forms = choose_forms(config, recipe.model)
    init, optimizer, step = recipe.build(compute)
    loader = recipe.loader()
    with (
        mirror.published(directory),
        open_checkpoints(directory / CHECKPOINTS, config.run.keep_checkpoints) as checkpoints,
        open_checkpoints(directory / BEST, 1) as best,
    ):
        if newest:
            state, start, position = checkpoints.restore(abstract_state(init, optimizer, mesh, sharding))
        else:
            state, start, position = create_state(init, optimizer, mesh, sharding), 0, None
            state = recipe.start(state)
        trackers = open_trackers(config, directory, start, written) if first else []
        with (
            RunLog(directory, start, optimization.training_steps, console, first=first, trackers=trackers) as log,
            Trace(directory / "profile" / str(jax.process_index()), *traced_steps(config)) as trace,
        ):
            if config.run.ipaddr:
                log.message("--ipaddr is accepted for the original's scripts and ignored")
            if recipe.weights:
                log.message(f"weights  {recipe.weights}")
            if start:
                log.message(f"continuing {mirror.shown(directory)} from step {start} of {optimization.training_steps}")
            log.message(recipe.describe(state))
            for line in forms:
                log.message(f"forms    {line}")
            log.message(f"loader   {loader.footprint}")
            for problem in source.problems[:5]:
                log.message(f"data     {problem}")
            evaluate, evaluated = None, True
            if recipe.judge is not None:
                judge = recipe.judge(directory, mesh, start)
                # A stop may have come before or in the evaluation of the step at which this run goes on.
                evaluated = not start or bool(broadcast_from_0(evaluated_at(directory / "metrics.jsonl", start)))
                evaluate = partial(evaluate_and_keep_best, judge, best, log)
                if start and judge.best_step == start:
                    best.save(as_evaluated(state), start)  # the process before may have ended between the two saves
            batches = loader.iterate(start, optimization.training_steps, position)
            given = config.run
            state, done = fit(
                state,
                step,
                Feed(
                    map(recipe.check, batches),
                    config.data.train_batch_size,
                    loader.position,
                    merge_if_any,
                    partial(count_faults, loader),
                ),
                RunContext(
                    start,
                    optimization.training_steps,
                    Intervals(given.save_interval, given.log_interval, given.eval_interval, given.save_minutes),
                    checkpoints,
                    log,
                    trace,
                ),
                mesh=mesh,
                evaluate=evaluate,
                evaluated=evaluated,
                explain=partial(recipe.explain, directory, mesh),
                flop=recipe.flop,
            )
            batches.close()
            if loader.bad:
                log.message(f"{len(loader.bad)} unreadable images were left out, the first: {next(iter(loader.bad))}")
            if loader.lost:
                log.message(f"{len(loader.lost)} shards were not read to the end, the first: {next(iter(loader.lost))}")
    return Trained(directory, state, done)


def open_directory(config: Config, model: MAE | Classifier, source: Source | Stream) -> tuple[int, dict[str, Any]]:
    """Open the folder of a run, new or old: the step of its newest checkpoint, and what config.json holds.

    Raises:
        InputError: it holds another run, or the processes do not share it.
        Failed: a bucket does not answer.

    """
    directory = run_directory(config)
    written = {
        "maejax": __version__,
        "flags": safe_flags(config),
        "model": model.to_json(),
        "compute": asdict(compute_of(config)),
        "images": source.total,
        "classes": source.classes,
    }
    mirror.refresh(directory)
    newest = open_run(
        directory,
        written,
        differences=run_differences(read_config(directory), written),
        resume=config.run.resume,
        first=jax.process_index() == 0,
    )
    if not all_processes(newest == broadcast_from_0(newest) and mirror.exists(directory / CONFIG)):
        raise InputError(
            f"the processes see different files in {mirror.shown(directory)}; --output-dir must be a folder they share"
        )
    return newest, written


def count_faults(loader: Input) -> dict[str, float]:
    """Count what this process's input left out so far."""
    return {"data/bad_images": float(len(loader.bad)), "data/lost_shards": float(len(loader.lost))}


def open_trackers(config: Config, directory: Path, start: int, written: dict[str, Any]) -> list[Tracker]:
    """Begin to log to what the flags name besides metrics.jsonl."""
    trackers: list[Tracker] = []
    if config.run.wandb:
        trackers.append(WandB(directory, config.run.project, directory.name, written))
    if config.run.tensorboard:
        trackers.append(TensorBoard(directory, start))
    return trackers


def merge_if_any(positions: list[Any]) -> Any:
    """Put together where the processes stand in a stream; None where the input has no position beside its step."""
    return None if positions[0] is None else merge_positions(positions)


def evaluate_and_keep_best(
    validation: Judge, best: Checkpoints, log: RunLog, state: TrainState, step: int, watch: Watch
) -> dict[str, float]:
    """Validate a state, hand on its pictures, and save it where it is the best so far."""
    metrics = validation(state, step, watch)
    log.message("valid    " + ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in metrics.items()))
    picture = validation.picture_path(step)
    if picture.exists():
        log.picture(step, picture)
    if validation.best_step == step:
        best.save(as_evaluated(state), step)
    return metrics


def describe_run(config: Config, source: Source | Stream, peak: float, state: TrainState, model: str) -> str:
    """Say in a few lines what is about to be trained, on what, where; `model` says how large its parts are."""
    parameters = sum(array.size for array in jax.tree.leaves(nnx.state(state.model, nnx.Param)))
    data, optimization = config.data, config.optimization
    if source.total is None:
        images, epochs = f"{len(source.shards)} shards", ""  # type: ignore[union-attr]
    else:
        seen = optimization.training_steps * data.train_batch_size / config.augment.augment_repeats
        images, epochs = f"{source.total:,} images", f" = {seen / source.total:.1f} epochs"
    return (
        f"model    {parameters / 1e6:.2f} M parameters, {model}, {precision(config)}\n"
        f"data     {images}, batch {data.train_batch_size}, {optimization.training_steps:,} steps{epochs}\n"
        f"rate     peak {peak:.3g} = {optimization.learning_rate:g} x {data.train_batch_size} / 256\n"
        f"devices  {jax.device_count()} x {jax.devices()[0].device_kind}"
        f"{f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''}, {config.machine.sharding}\n"
        f"run      {mirror.shown(run_directory(config))}"
    )
