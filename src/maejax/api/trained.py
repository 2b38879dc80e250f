"""Training from Python: `maejax train` with code and data of one's own."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Unpack, overload

import jax
from rich.console import Console

from maejax.api.creation import Model
from maejax.api.dataset import Dataset, Images
from maejax.api.flags import TrainFlags, config_of
from maejax.commands.command import check_writable
from maejax.commands.train import TrainCommand
from maejax.config import Config, with_flags
from maejax.console import Terminal
from maejax.distributed.processes import all_processes, join
from maejax.errors import InputError
from maejax.models.classifier import ImageClassifier
from maejax.models.description import MAE
from maejax.models.mae import MaskedAutoencoder
from maejax.options.job import Processes
from maejax.options.network import Mae
from maejax.tasks import resolved
from maejax.tasks.configured import run_directory, saved_run
from maejax.tasks.images import Sources, held_out, open_images
from maejax.tasks.settings import Asked
from maejax.tasks.transfer import SIZES
from maejax.training.log import Callback, read_lines
from maejax.weights import files
from maejax.weights.weights import weights_of

Kind = TypeVar("Kind")
Code = Callable[..., Any]


@dataclass(frozen=True)
class Trained(Generic[Kind]):
    """The result of a training.

    `model` is that of the newest checkpoint, as `maejax.load` reads it. `metrics` are the lines of metrics.jsonl, each
    with its `step`. `directory` is the folder of the run. `done` is False if a callback, SIGTERM or Ctrl-C stopped it:
    the same call goes on.
    """

    model: Kind
    metrics: list[dict[str, float]]
    directory: Path
    done: bool


@overload
def train(
    images: Images | Dataset | None = None,
    *,
    model: str | Model | None = None,
    mode: Literal["pretrain"] = "pretrain",
    mask: Literal["random", "block", "grid", "noise"] | Code = "random",
    target: str | Code = "pixels",
    decoder: Literal["self", "cross"] | Code = "self",
    train_dataset_shards: Images | Dataset | None = None,
    valid_dataset_shards: Images | Dataset | None = None,
    budget: str = "",
    epochs: float | None = None,
    warmup_epochs: float | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **flags: Unpack[TrainFlags],
) -> Trained[MaskedAutoencoder]: ...
@overload
def train(
    images: Images | Dataset | None = None,
    *,
    model: Model | None = None,
    mode: Literal["linear", "finetune"],
    train_dataset_shards: Images | Dataset | None = None,
    valid_dataset_shards: Images | Dataset | None = None,
    epochs: float | None = None,
    warmup_epochs: float | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **flags: Unpack[TrainFlags],
) -> Trained[ImageClassifier]: ...
def train(
    images: Images | Dataset | None = None,
    *,
    model: str | Model | None = None,
    mode: Literal["pretrain", "linear", "finetune"] = "pretrain",
    train_dataset_shards: Images | Dataset | None = None,
    valid_dataset_shards: Images | Dataset | None = None,
    budget: str = "",
    epochs: float | None = None,
    warmup_epochs: float | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **flags: Any,
) -> Trained[Any]:
    """Train as `maejax train` does, whose flags are the keyword arguments; the run is in OUTPUT_DIR/NAME.

    With `images`, sizes, batch, epochs and rate that are not given are chosen, as for `maejax train IMAGES`; with
    `train_dataset_shards` in their place nothing is chosen. Both, and `valid_dataset_shards`, may be a `Dataset`, or
    what one takes. `model` names sizes, or is a model to start from. `mask`, `target` and `decoder` may be code, see
    docs/python.md. Each of `callbacks` gets the step and the metrics of every line of the log; if it returns True, the
    run is saved and stopped. `quiet` prints nothing.
    Raises InputError if the input is wrong, and Failed if the loss became non-finite.
    """
    given = {"mode": mode, **flags}
    if wrong := [name for name in ("eval_only", "print_config") if flags.get(name)]:
        raise InputError(f"{wrong[0]} is for the command: train(...) trains; evaluate(...) scores an encoder")
    sets = {
        name: Dataset(each) if each is not None and not isinstance(each, Dataset) else each
        for name, each in {
            "images": images,
            "train_dataset_shards": train_dataset_shards,
            "valid_dataset_shards": valid_dataset_shards,
        }.items()
    }
    for name in ("train_dataset_shards", "valid_dataset_shards"):
        if (each := sets[name]) is not None:
            given[name] = each.name
    starts, size = (model, "") if not isinstance(model, str) else (None, model)
    if starts is not None:
        given = {**flags_of(starts, mode), **given}
    command = TrainCommand(
        config_of(mode, given),
        images=sets["images"].name if sets["images"] is not None else "",
        model=size,
        budget=budget,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        given=frozenset(given) - {"mode"},
    )
    command.check()
    if not jax.distributed.is_initialized():
        machine = command.config.machine
        join(**{field.name: getattr(machine, field.name) for field in dataclasses.fields(Processes)})
    first = jax.process_index() == 0
    console = Terminal() if first and not quiet else Console(quiet=True)
    of_training = sets["train_dataset_shards"] if sets["images"] is None else sets["images"]
    config, sources = with_sources(command, of_training, sets["valid_dataset_shards"])
    run = config.run
    if first and "://" not in run.output_dir:
        check_writable("output_dir", f"{run.output_dir}/{run.name or run.mode}", folder=True)
    if starts is not None:
        config = started_from(starts, config)
    asked = Asked(config, command.given, size, epochs, warmup_epochs)
    chooses = mode == "pretrain" and bool(command.images or size or budget)
    config, sources = resolved.resolve(
        asked, budget if chooses else None, console, opens=command.leaves_open, sources=sources
    )
    finished = resolved.run(config, console, sources=sources, callbacks=callbacks)
    code: dict[str, Any] = {name: each for name in ("decoder", "target") if callable(each := given.get(name))}
    model = files.load(finished.directory, **code)
    return Trained(model, read_lines(finished.directory / "metrics.jsonl"), finished.directory, finished.done)


def with_sources(command: TrainCommand, train: Dataset | None, valid: Dataset | None) -> tuple[Config, Sources | None]:
    """Return the flags with the places of the images, and the images themselves where they are no place.

    Raises InputError if they cannot be opened, or split for `hold_out`.
    """
    if train is None or (train.plain and (valid is None or valid.plain)):
        return command.with_images(), None
    config, labelled = command.config, command.config.run.mode != "pretrain"
    config = with_flags(config, train_dataset_shards=train.name)
    source = train.open(config.data.cache_dir, labelled=labelled)
    held = None if valid is None else valid.open_whole(config.data.cache_dir)
    if config.data.hold_out:
        source, held = held_out(open_images(config, sources=(source, held))[1], held, config.data.hold_out)
    return config, (source, held)


def started_from(model: Model, config: Config) -> Config:
    """Return flags that start a run from a model; it is written into the folder of the run, if that is new."""
    if "://" in config.run.output_dir:
        raise InputError(f"output_dir {config.run.output_dir}: to start from a model there, save it and give its "
                         "place as pretrained_ckpt")  # fmt: skip
    path = run_directory(config) / "start.safetensors"
    if jax.process_index() == 0 and saved_run(config) is None:
        files.write(weights_of(model), path, "maejax")
    all_processes(True)
    return with_flags(config, pretrained_ckpt=str(path))


def flags_of(model: Model, mode: str) -> dict[str, Any]:
    """Return the flags of a model: the sizes and dropout of its encoder and, to pre-train, all of its decoder."""
    config = model.config
    encoder = config.encoder
    found: dict[str, Any] = {name: getattr(encoder, name) for name in (*SIZES, "channels", "dropout", "droppath")}
    found["image_size"] = "x".join(map(str, dict.fromkeys(encoder.image_size)))
    if mode != "pretrain" or not isinstance(config, MAE):
        return found
    found |= {
        flag.name: getattr(config.decoder, flag.name.removeprefix("dec_"))
        for flag in dataclasses.fields(Mae)
        if flag.name.startswith("dec_")
    }
    found |= {"loss_on": config.loss_on, "decoder": config.decoder.custom or config.decoder.attention}
    return found | ({"target": config.custom_target} if config.custom_target else {})
