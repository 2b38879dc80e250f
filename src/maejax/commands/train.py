"""`maejax train`: pre-training, probing, fine-tuning or scoring, by the flags of a configuration."""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from maejax.commands.command import DONE, STOPPED, Command, check_writable, prepare_devices
from maejax.commands.early_stop import early_stop
from maejax.config import Config, flags, with_flags
from maejax.console import plain
from maejax.errors import InputError


@dataclass(frozen=True)
class TrainCommand(Command):
    """Train a masked autoencoder on your images, or probe, fine-tune or score one (--mode).

    `maejax train IMAGES` chooses the sizes of the model, batch, epochs and rate for these images, this machine and
    the time of --budget, and says why; flags that are given stay. With --train-dataset-shards in the place of IMAGES
    nothing is chosen. Results go to OUTPUT_DIR/NAME: config.json, metrics.jsonl, checkpoints, pictures of
    reconstructions. The same command started again continues where it stopped. Underscores and hyphens in flags mean
    the same.
    """

    config: Config = field(default_factory=Config, metadata={"title": ""})
    json: bool = field(default=False, init=False)  # --print-config prints JSON; a run writes it into its folder

    images: str = field(default="", metadata={"positional": "[IMAGES]"})
    """Images to train on, as --train-dataset-shards: a folder, or shards. Of a folder with train and validation in it
    these two are used; of other images some are held out to validate on (--hold-out)."""
    model: str = ""
    """Named sizes: n12, ti8, s16, b16, l16 or h14; or one of these letters with another patch, such as s8. Empty: the
    largest for the images and the budget."""
    budget: str = ""
    """Time to train in, such as 30m, 2h or 3d, for which epochs and sizes are chosen. Empty: 2h."""
    epochs: float | None = None
    """Passes over the images, in place of --training-steps."""
    warmup_epochs: float | None = None
    """Epochs over which the learning rate rises, in place of --warmup-steps."""
    given: frozenset[str] = field(default=frozenset(), metadata={"hidden": True})
    """Names of the flags on the command line; the file of --pretrained-ckpt decides about some of the others."""

    to_stdout: ClassVar[bool] = True
    lighter: ClassVar[str] = (
        "lower --train-batch-size or --valid-batch-size, or add --grad-accum 2, --grad-ckpt or --sharding fsdp; "
        "`maejax plan` says what fits"
    )

    def run(self, console: Console) -> dict[str, Any]:
        """Train, or score with --eval-only; returns the flags with --print-config, else whether the run is done."""
        self.check()
        if self.config.run.print_config and not self.leaves_open:
            return printed(self.config)
        with early_stop():
            return replace(self, config=self.with_images())._train(console)

    @property
    def leaves_open(self) -> bool:
        """Return whether the images decide about some flags."""
        return (
            bool(self.images or self.model or self.budget) or self.epochs is not None or self.warmup_epochs is not None
        )

    def check(self) -> None:
        """Check the arguments that are no flags of a run; raises InputError for the first that is wrong."""
        if self.images and self.config.data.train_dataset_shards:
            raise InputError(f"{self.images}: --train-dataset-shards names images to train on too; leave one out")
        for name in ("model", "budget"):
            if (value := getattr(self, name)) and (mode := self.config.run.mode) != "pretrain":
                raise InputError(f"--{name} {value} is for pre-training, and this is --mode {mode}; leave it out")
        for name, steps in (("epochs", "training_steps"), ("warmup_epochs", "warmup_steps")):
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and steps in self.given:
                raise InputError(f"{flag} {value:g} and --{steps.replace('_', '-')} say the same; leave one out")
            if value is not None and (value < 0 or (name == "epochs" and not value)):
                raise InputError(f"{flag} {value:g}: give a number above 0")

    def with_images(self) -> Config:
        """Return the flags with IMAGES as those to train on, and their part that is named validation."""
        if not self.images:
            return self.config
        from maejax.data.folder import find_parts

        place = Path(self.images).expanduser()
        train, valid = find_parts(place)
        places = {"train_dataset_shards": self.images if train == place else str(train)}
        if valid is not None and not {"valid_dataset_shards", "hold_out"} & self.given:
            places["valid_dataset_shards"] = str(valid)
        return with_flags(self.config, **places)

    def _train(self, console: Console) -> dict[str, Any]:
        """Train or score in this process, perhaps one of several."""
        run, machine = self.config.run, self.config.machine
        from maejax.distributed.processes import join

        first = prepare_devices(
            partial(
                join,
                distributed=machine.distributed,
                coordinator=machine.coordinator,
                num_processes=machine.num_processes,
                process_id=machine.process_id,
                silent_seconds=machine.silent_seconds,
            )
        )
        console = console if first else Console(quiet=True)
        if first and "://" not in run.output_dir:
            check_writable("--output-dir", f"{run.output_dir}/{run.name or run.mode}", folder=True)
        from maejax.storage.mirror import shown
        from maejax.tasks import resolved
        from maejax.tasks.settings import Asked

        opens = self.leaves_open and not run.eval_only
        chooses = run.mode == "pretrain" and bool(self.images or self.model or self.budget)
        asked = Asked(self.config, self.given, self.model, self.epochs, self.warmup_epochs)
        config, sources = resolved.resolve(asked, self.budget if chooses else None, console, opens=opens)
        if run.eval_only:
            from maejax.tasks import eval_only  # training from scratch reads no weights

            eval_only.run(config, console)
            return {"done": True}
        if run.print_config:
            return printed(config)
        finished = resolved.run(config, console, sources=sources)
        if finished.done:
            say_next(console, shown(finished.directory), run.mode)
        else:
            say_stopped(console, shown(finished.directory))
        return {"done": finished.done}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the flags of --print-config; a run has printed its log."""
        if self.config.run.print_config:
            print(json.dumps(result, indent=2))

    def exit_code(self, result: dict[str, Any]) -> int:
        """Return 75 for a run that was stopped after saving."""
        return DONE if result.get("done", True) else STOPPED


def printed(config: Config) -> dict[str, Any]:
    """Return all flags, and the peak of the learning rate."""
    from maejax.training.schedule import peak_rate

    peak = peak_rate(config.optimization.learning_rate, config.data.train_batch_size)
    return {**flags(config), "peak_learning_rate": peak}


def say_next(console: Console, directory: str, mode: str) -> None:
    """Print what to do with a run that is done."""
    use = f"maejax train --mode {mode} --eval-only --pretrained-ckpt {directory} --valid-dataset-shards IMAGES"
    if mode == "pretrain":
        use = f"maejax reconstruct {directory} PHOTO.jpg, maejax evaluate {directory} (needs labelled images)"
    use += f", maejax export {directory}, maejax compare {directory} OTHER_RUN"
    plain(console, f"page     {directory}/report.html")
    plain(console, f"done     {directory}")
    plain(console, f"next     {use}")


def say_stopped(console: Console, directory: str) -> None:
    """Print how to continue after a stop."""
    console.print(f"stopped and saved in {directory}; start the same command again to go on", highlight=False)
