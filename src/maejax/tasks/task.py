"""A task: what pre-training and classification each do in their own way, in the order in which a run does it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from maejax.config import Config
from maejax.data.augment import Transform
from maejax.data.pipeline import Batch, Loader
from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.models.description import MAE, Classifier, Compute
from maejax.storage import mirror
from maejax.tasks.checks import check_colours, check_data, check_least, check_step, precision
from maejax.tasks.configured import configured_rate, configured_transform, run_directory, saved_run, train_loader
from maejax.tasks.images import Sources, normalised_as, open_images
from maejax.training.loop import Watch
from maejax.training.state import TrainState
from maejax.training.trackers import check_installed

Model = TypeVar("Model", MAE, Classifier)


class Phase(NamedTuple):
    """The part of a run up to step `stop`: its model and optimizer, its step, and the FLOP of a step on one image."""

    stop: int
    init: Callable[[], nnx.Module]
    optimizer: optax.GradientTransformation
    step: Callable
    flop: float


class Evaluation(NamedTuple):
    """The metrics of a state, and the file of its pictures if this process drew some."""

    metrics: dict[str, float]
    pictures: Path | None = None


class Evaluator(Protocol):
    """Evaluates a state; `best_step` is the step at which it was best so far."""

    best_step: int

    def __call__(self, state: TrainState, step: int, watch: Watch) -> Evaluation:
        """Evaluate a state; `watch` is laid around the batches, see `Evaluate`."""
        ...


class Task(ABC, Generic[Model]):
    """A way to train. `prepare` sets the attributes; the other methods stand in the order in which a run calls them.

    `source` has the training images and `valid` those of validation, if any. `model` is the description. `arrays` are
    the weights to start from, by name, and `origin` says where they come from. `saved` is config.json of the run that
    goes on, None for a new one: its checkpoint takes the place of `arrays`. `watched` are images to judge features on.
    """

    source: Source | Stream
    valid: Source | None
    model: Model
    saved: dict[str, Any] | None
    transform: Transform
    watched: Source | None = None

    def __init__(self, config: Config, sources: Sources | None = None):
        self.config, self.sources = config, sources
        self.arrays: Mapping[str, Any] = {}
        self.origin = ""

    def prepare(self) -> None:
        """Check and open all that can be wrong, before anything is compiled. Raises InputError if something is."""
        check_least(self.config)
        self.check_flags()
        check_data(self.config)
        check_step(self.config, jax.device_count())
        self.saved = saved_run(self.config)
        check_installed(wandb=self.config.run.wandb, tensorboard=self.config.run.tensorboard)
        self.config, self.source, self.valid = open_images(self.config, self.saved, self.sources)
        check_colours(self.config)
        self.describe_model()
        if not self.arrays and not self.saved:
            self.model = normalised_as(self.model, self.config)
        self.transform = configured_transform(self.config, self.model.encoder.mean)

    @abstractmethod
    def check_flags(self) -> None:
        """Check the flags that the task reads in its own way. Raises InputError at the first that is wrong."""

    @abstractmethod
    def describe_model(self) -> None:
        """Set `model`, and `arrays` and `origin` if a new run starts from weights. Raises InputError if they differ."""

    @abstractmethod
    def build_step(self, compute: Compute) -> tuple[Callable[[], nnx.Module], optax.GradientTransformation, Callable]:
        """Build a function that makes the model, the optimizer, and the step of `make_step`."""

    def phases(self, compute: Compute) -> list[Phase]:
        """List the parts of a run, in order. Each trains all that the one before trains, and the last trains all."""
        return [Phase(self.config.optimization.training_steps, *self.build_step(compute), self.image_flop())]

    def open_loader(self) -> Loader:
        """Open the training batches of this host; called once the run is known to be able to start."""
        return train_loader(self.config, self.source, self.transform)

    @abstractmethod
    def start_from_weights(self, state: TrainState) -> TrainState:
        """Place `arrays` in a new state."""

    def describe(self, state: TrainState) -> str:
        """Describe in a few lines the model that is about to be trained, the data and the devices."""
        parameters = sum(array.size for array in jax.tree.leaves(nnx.state(state.model, nnx.Param)))
        config, data, optimization = self.config, self.config.data, self.config.optimization
        if self.source.total is None:
            images, epochs = self.source.size, ""  # type: ignore[union-attr]
        else:
            seen = optimization.training_steps * data.train_batch_size / config.augment.augment_repeats
            images, epochs = f"{self.source.total:,} images", f" = {seen / self.source.total:.1f} epochs"
        return (
            f"model    {parameters / 1e6:.2f} M parameters, {self.describe_parts()}, {precision(config)}\n"
            f"data     {images}, batch {data.train_batch_size}, {optimization.training_steps:,} steps{epochs}\n"
            f"pixels   {self.source.form.describe()}\n"
            f"rate     peak {configured_rate(config)[1]:.3g} = {optimization.learning_rate:g} x "
            f"{data.train_batch_size} / 256\n"
            f"devices  {jax.device_count()} x {jax.devices()[0].device_kind}"
            f"{f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''}, {config.machine.sharding}\n"
            f"run      {mirror.shown(run_directory(config))}"
        )

    @abstractmethod
    def describe_parts(self) -> str:
        """Describe how large the parts of the model are."""

    @abstractmethod
    def open_evaluator(self, source: Source, directory: Path, mesh: Mesh, start: int) -> Evaluator:
        """Prepare the validation of a run that starts at a step."""

    def open_watch(self, source: Source, mesh: Mesh) -> tuple[int, Evaluator]:
        """Choose the steps between two judgements of features on images, and prepare their evaluator."""
        raise NotImplementedError

    @abstractmethod
    def image_flop(self) -> float:
        """Count the FLOP of one step on one image, for `train/mfu`."""

    def check_batch(self, batch: Batch) -> Batch:
        """Return a batch after a check of what is not known before. Raises InputError if it is wrong."""
        return batch

    @abstractmethod
    def explain(self, directory: Path, mesh: Mesh, state: TrainState, step: int, rows: Batch) -> str:
        """Explain why the step after `state` gave no finite loss or gradient, and write its batch for inspection."""

    def finish(self, directory: Path, console: Any) -> None:
        """Write what a run leaves besides its checkpoints; called after the last step, or a stop."""
