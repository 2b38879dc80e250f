"""The table of commands; each parses its flags and calls the room that does the work."""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.logging import RichHandler

from maejax.config import MODES, Config, ConfigError, recipe
from maejax.data.shards import DataError
from maejax.training.errors import RunError, TrainingError

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75  # exit codes

Json = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def train_command(mode: str) -> Callable[..., int]:
    """Make the `train` command with the recipe of a mode as defaults, so that --help shows what will run."""
    defaults = recipe(mode)

    def train(config: Config = defaults) -> int:
        prepare_devices()
        console = Console(quiet=not join_processes(config))
        if config.run.mode != "pretrain":
            raise ConfigError(f"--mode {config.run.mode} is not built yet; --mode pretrain is")
        from maejax.tasks import pretrain

        result = pretrain.run(config, console)
        return DONE if result.done else stopped(console, result.directory)

    train.__doc__ = Config.__doc__
    return train


def demo(
    output_dir: str = "runs", name: str = "demo", seed: int = 0, training_steps: int | None = None, json: Json = False
) -> int:
    """Do the whole job on embedded real images in under ten minutes: pack, pre-train, judge, report.

    Args:
        output_dir: Folder of all runs.
        name: Name of this run and of its folder.
        seed: Seed of weights, masks and order.
        training_steps: Shorten the training; the scores shrink with it.
        json: Print the results as JSON, everything else to the error stream.

    """
    prepare_devices()
    console = Console(stderr=json)
    from maejax.tasks import demo as task

    result = task.run(console, output_dir=output_dir, name=name, seed=seed, training_steps=training_steps)
    if result is None:
        return stopped(console, Path(output_dir) / name)
    if json:
        print_json(result)
    return DONE


def pack(
    src: tyro.conf.Positional[str],
    dst: tyro.conf.Positional[str],
    shard_size: int = 1000,
    shuffle_seed: int | None = 0,
    image_size: int | None = None,
    json: Json = False,
) -> int:
    """Pack images into balanced, shuffled tar shards with an index and checksums.

    Args:
        src: Image folder (labelled or flat), tar shards, or an .npz file with `images` and `labels`.
        dst: Folder for the shards, which are called after it.
        shard_size: Images in a shard at the most.
        shuffle_seed: Seed of the order; None keeps the order of the source.
        image_size: Resize larger images to this short side, in pixels.
        json: Print the index as JSON.

    """
    from rich.progress import Progress

    from maejax.data.pack import pack as write_shards

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("packing", total=None)
        index = write_shards(
            src, dst, shard_size=shard_size, shuffle_seed=shuffle_seed, image_size=image_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    for key, reason in index["skipped"].items():
        console.print(f"left out {key}: {reason}", highlight=False, markup=False)
    if json:
        print_json(index)
    else:
        print(f"{index['total']:,} images in {len(index['shards'])} shards in {dst}")
    return DONE


def reconstruct(
    ckpt: tyro.conf.Positional[str],
    images: tyro.conf.Positional[list[str]],
    out: str = "reconstructions",
    mask: str = "random",
    seed: int = 0,
    json: Json = False,
) -> int:
    """Hide patches of your own images and draw what the model makes of them, one picture for each image.

    Args:
        ckpt: Run directory or checkpoint.
        images: Image files.
        out: Folder for the pictures.
        mask: Which patches are hidden: random, block or grid.
        seed: Seed of the mask.
        json: Print the paths as JSON.

    """
    prepare_devices()
    from maejax.evaluate.pictures import write_pictures
    from maejax.interop.run import load

    written = [str(path) for path in write_pictures(load(ckpt), images, Path(out), mask=mask, seed=seed)]
    if json:
        print_json({"pictures": written})
    else:
        print("\n".join(written))
    return DONE


def main(args: Sequence[str] | None = None) -> int:
    """Run `maejax ARGS` and return its exit code: 0 done, 2 wrong input, 1 failed, 75 stopped after saving."""
    args = list(sys.argv[1:] if args is None else args)
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )  # fmt: skip
    try:
        commands = {"train": train_command(mode_of(args)), "demo": demo, "pack": pack, "reconstruct": reconstruct}
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog="maejax", description="Masked-autoencoder pre-training in JAX.", args=args,
            config=(tyro.conf.OmitArgPrefixes,),
        )  # fmt: skip
    except (ConfigError, DataError, RunError, TrainingError) as error:
        Console(stderr=True).print(f"maejax: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        return leave_processes(FAILED if isinstance(error, TrainingError) else WRONG_INPUT)
    except KeyboardInterrupt:
        Console(stderr=True).print("maejax: interrupted", style="bold red")
        return FAILED


def mode_of(args: list[str]) -> str:
    """Find `--mode` among the arguments, before they are parsed; its last value decides the defaults of the rest."""
    mode = MODES[0]
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == "--mode":
            mode = value if equals else "".join(args[i + 1 : i + 2])
    if mode not in MODES:
        raise ConfigError(f"--mode {mode}: choose one of {', '.join(MODES)}")
    return mode


def prepare_devices() -> None:
    """Set up memory for computation on this host; before JAX computes anything."""
    from maejax.training.memory import keep_freed_memory

    keep_freed_memory()


def join_processes(config: Config) -> bool:
    """Become one of the processes of a run, if the flags say so; tell whether it is the first, which speaks for all."""
    machine = config.machine
    if not (machine.distributed or machine.coordinator or machine.num_processes or machine.process_id >= 0):
        return True
    from maejax.training.processes import join

    return join(
        distributed=machine.distributed, coordinator=machine.coordinator, num_processes=machine.num_processes,
        process_id=machine.process_id,
    )  # fmt: skip


def leave_processes(code: int) -> int:
    """Give an exit code back, or end at once if this is one of several processes."""
    if "jax" not in sys.modules:
        return code
    from maejax.training.processes import leave

    return leave(code)


def stopped(console: Console, directory: Path) -> int:
    """Say how to go on after a stop."""
    console.print(f"stopped and saved in {directory}; start the same command again to go on", highlight=False)
    return STOPPED


def print_json(value: object) -> None:
    """Print a result for programs."""
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    sys.exit(main())
