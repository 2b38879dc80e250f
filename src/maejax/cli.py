"""The table of commands; each parses its flags and calls the room that does the work."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.logging import RichHandler

from maejax.config import MODES, Config, Encoder, flags, recipe
from maejax.errors import Failed, InputError

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75  # exit codes

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def train_command(mode: str) -> Callable[..., int]:
    """Make the `train` command with the recipe of a mode as defaults, so that --help shows what will run."""
    defaults = recipe(mode)

    def train(config: Config = defaults) -> int:
        if config.run.print_config:
            from maejax.training.schedule import peak_rate

            peak = peak_rate(config.optimization.learning_rate, config.data.train_batch_size)
            print_json({**flags(config), "peak_learning_rate": peak})
            return DONE
        prepare_devices()
        console = Console(quiet=not join_processes(config))
        if config.run.eval_only:
            from maejax.tasks import eval_only

            eval_only.run(config, console)
            return DONE
        if config.run.mode == "pretrain":
            from maejax.tasks import pretrain as task
        else:
            from maejax.tasks import classify as task

        result = task.run(config, console)
        return DONE if result.done else stopped(console, result.directory)

    train.__doc__ = Config.__doc__
    return train


def demo(
    output_dir: str = "runs", name: str = "demo", seed: int = 0, training_steps: int | None = None, json: Flag = False
) -> int:
    """Do the whole job on embedded real images in about ten minutes: pack, pre-train, judge, report.

    Args:
        output_dir: Folder of all runs.
        name: Name of this run and of its folder.
        seed: Seed of weights, masks and order.
        training_steps: Shorten the training; the scores shrink with it.
        json: Print the results as JSON, everything else to the error stream.

    """
    prepare_devices()
    console = Console(stderr=json)
    from maejax.commands import demo as task

    result = task.run(console, output_dir=output_dir, name=name, seed=seed, training_steps=training_steps)
    if result is None:
        return stopped(console, Path(output_dir) / name)
    if json:
        print_json(result)
    return DONE


def pack(
    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")] = "",
    shard_size: int = 1000,
    shuffle_seed: int | None = 0,
    image_size: int | None = None,
    quality: int | None = None,
    labels: str | None = None,
    workers: int | None = None,
    verify: Flag = False,
    deep: Flag = False,
    json: Flag = False,
) -> int:
    """Pack images into balanced, shuffled tar shards with an index and checksums, or verify shards that are packed.

    A pack that was interrupted goes on where it stopped by the same command.

    Args:
        src: Image folder (labelled or flat), tar shards, a Hugging Face `datasets` folder, arrow or parquet files, or
            an .npz file with `images` and `labels`. With --verify: the folder of packed shards.
        dst: Folder for the shards, which are called after it.
        shard_size: Images in a shard at the most.
        shuffle_seed: Seed of the order; None keeps the order of the source.
        image_size: Resize larger images to this short side, in pixels.
        quality: JPEG quality, 1 to 100. Given: JPEG and WebP images become JPEG of this quality where that is smaller.
            None: only resized ones are written anew, at 95.
        labels: File that says which image is of which class: csv, tsv or json, file name (or stem) and class.
        workers: Threads, each of which writes a shard. None: one for each core. Never changes what is written.
        verify: Read all shards of a folder again and compare them with its index.json; exit code 2 if one is wrong.
        deep: With --verify: decode every image too.
        json: Print the index, or what --verify found, as JSON.

    """
    from maejax.commands import pack as task

    console = Console(stderr=True)
    if verify:
        found = task.check(console, task.verified_folder(src, dst), deep=deep, workers=workers)
        if json:
            print_json(found._asdict())
        else:
            task.show(Console(), found)
        return WRONG_INPUT if found.wrong else DONE
    index = task.run(
        console,
        src,
        task.destination(dst, deep),
        shard_size=shard_size,
        shuffle_seed=shuffle_seed,
        image_size=image_size,
        quality=quality,
        labels=labels,
        workers=workers,
    )
    if json:
        print_json(index)
    else:
        count = len(index["shards"])
        print(f"{index['total']:,} images in {count} shard{'s' * (count != 1)} in {dst}")
    return DONE


def data(
    shards: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")],
    image_size: str = "224",
    channels: int = 3,
    random_crop: Literal["rrc", "src", "none"] = "rrc",
    crop_scale: float = 0.2,
    color_jitter: float = 0.0,
    labels: str | None = None,
    sample: int = 1000,
    all: Flag = False,
    out: str = "contact-sheet.png",
    consume: float | None = None,
    seed: int = 0,
    json: Flag = False,
) -> int:
    """Look at images before training on them: what is there, what is wrong, and how fast this host prepares them.

    Also draws 64 images as the model will see them, augmented by the same flags as in training.

    Args:
        shards: Anything that --train-dataset-shards takes.
        image_size: Image size in pixels: a number, or HxW.
        channels: Channels of an image: 1 grey, 3 colour, 4 with alpha.
        random_crop: rrc: RandomResizedCrop. src: SimpleResizedCrop of DeiT-III. none: resize and centre crop.
        crop_scale: Smallest share of the image's area that rrc takes.
        color_jitter: Factor for brightness, contrast and saturation jitter.
        labels: File that says which image is of which class: csv, tsv or json, file name (or stem) and class.
        sample: Number of images that are decoded, drawn from all of them.
        all: Decode every image.
        out: File for the picture.
        consume: Images a second that the model takes: says whether the loader keeps up.
        seed: Seed of the order and of the augmentation, as --shuffle-seed in training.
        json: Print the facts as JSON.

    """
    from maejax.commands import data as task

    size = Config(encoder=Encoder(image_size=image_size)).image_shape
    facts = task.run(
        Console(stderr=True),
        shards,
        size=size,
        channels=channels,
        random_crop=random_crop,
        crop_scale=crop_scale,
        color_jitter=color_jitter,
        labels=labels,
        sample=None if all else sample,
        out=Path(out),
        consume=consume,
        seed=seed,
    )
    if json:
        print_json(facts)
    else:
        task.show(Console(), facts)
    return DONE


def reconstruct(
    ckpt: tyro.conf.Positional[str],
    images: tyro.conf.Positional[list[str]],
    out: str = "reconstructions",
    mask: str = "random",
    seed: int = 0,
    json: Flag = False,
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
    from maejax.weights.files import load

    written = [str(path) for path in write_pictures(load(ckpt), images, Path(out), mask=mask, seed=seed)]
    if json:
        print_json({"pictures": written})
    else:
        print("\n".join(written))
    return DONE


def inspect(
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")],
    heads: int | None = None,
    dec_heads: int | None = None,
    image_size: str = "",
    norm_pix_loss: bool | None = None,
    json: Flag = False,
) -> int:
    """Say what a file of weights is: who wrote it, the model, what is in it, what to do with it.

    Args:
        path: Run directory, checkpoint, .safetensors, .msgpack, .pth, Hugging Face directory, or an address.
        heads: Attention heads, where neither the file nor a head size of 64 tells them.
        dec_heads: Attention heads of the decoder, where the file does not tell them. None: 16.
        image_size: Image size, where the file does not tell it: a number, or HxW.
        norm_pix_loss: Whether the targets were normalised per patch, where the file does not tell it.
        json: Print the facts as JSON.

    """
    from maejax.commands import convert as task

    found, said = task.read_known(path, image_size, heads=heads, dec_heads=dec_heads, norm_pix_loss=norm_pix_loss)
    facts = task.describe(path, found)
    if said:
        Console(stderr=True).print(said, highlight=False, soft_wrap=True)
    if json:
        print_json(facts)
    else:
        task.show(Console(), facts)
    return DONE


def convert(
    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    to: Literal["maejax", "original", "fair", "timm", "hf"] = "maejax",
    identity: Flag = False,
    heads: int | None = None,
    dec_heads: int | None = None,
    image_size: str = "",
    norm_pix_loss: bool | None = None,
    json: Flag = False,
) -> int:
    """Write weights in the layout of another code; a missing, extra or misshapen tensor is an error.

    Args:
        src: Anything that `maejax inspect` takes.
        dst: File to write; for hf a directory.
        to: maejax: one .safetensors. original: .msgpack. fair: .pth of the authors' code. timm: .pth or .safetensors.
            hf: directory for `from_pretrained`.
        identity: For timm's `init_values=` and 1,000 classes: write LayerScale as 1 and the head as zeros.
        heads: As in inspect.
        dec_heads: As in inspect.
        image_size: As in inspect.
        norm_pix_loss: As in inspect.
        json: Print what was done as JSON.

    """
    from maejax.commands import convert as task

    done = task.convert(
        src,
        dst,
        to,
        identity=identity,
        image_size=image_size,
        heads=heads,
        dec_heads=dec_heads,
        norm_pix_loss=norm_pix_loss,
    )
    if json:
        print_json(done)
    else:
        for line in [done["fetched"], *(f"note: {notice}" for notice in done["notices"])]:
            if line:
                Console(stderr=True).print(line, highlight=False, soft_wrap=True)
        print(f"{done['kind']} from {done['from']} written to {dst} for {to}")
    return DONE


def export(
    ckpt: tyro.conf.Positional[str],
    to: Literal["hf-hub-folder", "stablehlo"] = "hf-hub-folder",
    out: str = "",
    name: str = "",
    report: str = "",
    pool: Literal["cls", "mean", "cls+mean", "none"] = "cls",
    json: Flag = False,
) -> int:
    """Write what serves an encoder elsewhere: a folder for the Hugging Face hub, or one compiled file.

    Args:
        ckpt: Anything that `maejax inspect` takes.
        to: hf-hub-folder: weights for transformers and timm, with a model card. stablehlo: uint8 images in, features
            out, weights within; any JAX runs it, without maejax.
        out: Folder or file to write. Empty: NAME-hub or NAME.stablehlo, after the checkpoint.
        name: Of the folder on the hub, OWNER/MODEL, for the commands on the card. Empty: the folder.
        report: report.json of `maejax evaluate`, whose numbers go on the card.
        pool: For stablehlo: the cls token, the mean of the patch tokens, both, or none for all tokens.
        json: Print what was written as JSON.

    """
    prepare_devices()
    from maejax.commands import export as task

    done = task.export(ckpt, to, out, name=name, report=report, pool=pool)
    if json:
        print_json(done)
    else:
        for notice in done["notices"]:
            Console(stderr=True).print(f"note: {notice}", highlight=False, soft_wrap=True)
        print(f"{done['kind']} written to {done['out']}: {', '.join(done['files'])}")
    return DONE


def features(
    ckpt: tyro.conf.Positional[str],
    images: tyro.conf.Positional[str],
    out: str,
    pool: str = "cls",
    layers: tuple[int, ...] = (),
    labels: str | None = None,
    test_crop_ratio: float = 0.875,
    batch_size: int = 64,
    workers: int = os.cpu_count() or 1,
    json: Flag = False,
) -> int:
    """Write what the encoder says about every image: features, labels and names in one file.

    Nothing is masked or augmented. A call that was interrupted goes on where it stopped by the same command.

    Args:
        ckpt: Run directory or checkpoint.
        images: Anything that --train-dataset-shards takes.
        out: File to write: .npz, .safetensors or .parquet.
        pool: cls: the cls token. mean: the mean of the patch tokens. cls+mean: both. none: all tokens.
        layers: Blocks after which features are taken, 0 the first, -1 the last. Empty: the encoder's output.
        labels: File that says which image is of which class: csv, tsv or json, file name (or stem) and class.
        test_crop_ratio: Images are resized to image size / ratio and cropped at the centre.
        batch_size: Images that are encoded together.
        workers: Threads that read and decode; 0: none beside the main one.
        json: Print what was written as JSON.

    """
    prepare_devices()
    from maejax.commands import features as task

    written = task.run(
        Console(stderr=True),
        ckpt,
        images,
        Path(out),
        pool=pool,
        layers=layers,
        labels=labels,
        crop_ratio=test_crop_ratio,
        batch_size=batch_size,
        workers=workers,
    )
    if json:
        print_json(written)
    else:
        print(f"{written['images']:,} features of shape {list(written['shape'])} in {out}")
    return DONE


def evaluate(
    ckpt: tyro.conf.Positional[str],
    train_dataset_shards: str = "",
    valid_dataset_shards: str = "",
    protocol: str = "all",
    out: str = "evaluation",
    pool: str = "cls+mean",
    labels: str | None = None,
    test_crop_ratio: float = 0.875,
    batch_size: int = 64,
    workers: int = os.cpu_count() or 1,
    no_control: Flag = False,
    seed: int = 0,
    json: Flag = False,
) -> int:
    """Judge a frozen encoder on labelled images, beside the same encoder untrained.

    Writes OUT/report.json and OUT/report.html.

    Args:
        ckpt: Run directory or checkpoint.
        train_dataset_shards: Labelled images that the judges learn from: anything that `maejax train` takes.
        valid_dataset_shards: Labelled images to test with.
        protocol: knn, fewshot, linear, attentive, several of these with commas between, or all.
        out: Folder for the report.
        pool: Features for all but attentive: cls, mean (of the patch tokens) or cls+mean.
        labels: File that says which image is of which class: csv, tsv or json, file name (or stem) and class.
        test_crop_ratio: Images are resized to image size / ratio and cropped at the centre.
        batch_size: Images that are encoded together.
        workers: Threads that read and decode; 0: none beside the main one.
        no_control: Leave the untrained encoder out.
        seed: Seed of the untrained weights, draws and probes.
        json: Print the report as JSON.

    """
    prepare_devices()
    from maejax.commands import evaluate as task

    command = f"maejax evaluate {ckpt} --train-dataset-shards '{train_dataset_shards}'"
    result = task.run(
        Console(stderr=json),
        ckpt,
        train_dataset_shards,
        valid_dataset_shards,
        Path(out),
        protocol=protocol,
        pool=pool,
        labels=labels,
        crop_ratio=test_crop_ratio,
        batch_size=batch_size,
        workers=workers,
        control=not no_control,
        seed=seed,
        command=f"{command} --valid-dataset-shards '{valid_dataset_shards}' --protocol {protocol} --seed {seed}",
    )
    if json:
        print_json(result)
    return DONE


def plan_command(mode: str) -> Callable[..., int]:
    """Make the `plan` command, with the defaults of `train` in a mode."""
    defaults = recipe(mode)

    def plan(
        config: Config = defaults,
        topology: str = "v4-8",
        sweep: Flag = False,
        out: str = "plan",
        images: int = 1_281_167,
        json: Flag = False,
    ) -> int:
        """Say what a training command will do on devices that need not be here: memory, traffic, messages, days.

        Takes all flags of `maejax train`, or a preset and flags:
        `maejax plan config/pretrain/NAME.sh --topology v4-64`. The real step is compiled for the devices and nothing is
        run; a TPU's compiler is in the extra `tpu`. Writes OUT/plan.json, OUT/plan.html and the compiled
        module, OUT/module.hlo.gz.

        Args:
            config: What to train.
            topology: TPU slice by the name that gcloud gives it, such as v3-8, v4-64, v5litepod-16, v5p-32, v6e-64; cpu
                or gpu: this machine's devices.
            sweep: Also compare unrolled and scanned layers, --grad-ckpt, --sharding and other batch sizes in one table.
            out: Folder for the plan.
            images: Images of an epoch; ImageNet-1k has 1,281,167.
            json: Print the plan as JSON.

        """
        os.environ.setdefault("JAX_PLATFORMS", "" if topology == "gpu" else "cpu")
        from maejax.commands import plan as task
        from maejax.plan import summary

        facts = task.run(
            Console(stderr=True),
            config,
            topology,
            Path(out),
            images=images,
            sweep=sweep,
            command=shlex.join(["maejax", *sys.argv[1:]]),
        )
        if json:
            print_json(facts)
        else:
            summary.show(Console(), facts)
        return DONE

    return plan


def doctor(
    output_dir: str = "runs",
    bucket: str = "",
    train_dataset_shards: str = "",
    consume: float | None = None,
    constraints: str = "",
    json: Flag = False,
) -> int:
    """Look whether this machine is ready to train; exit code 1 if something fails.

    Args:
        output_dir: Folder of runs, or its address: whether it takes all that a run writes.
        bucket: Address in a bucket, such as gs://mine/sets, below which a small file is written, read and deleted.
        train_dataset_shards: Images to measure the loader with. Empty: some are drawn.
        consume: Images a second that the model takes from this host: says whether the loader keeps up.
        constraints: File of versions, as of constraints/, that those installed are compared with.
        json: Print what was found as JSON.

    """
    from maejax.commands import doctor as task

    checks = task.run(
        Console(stderr=True),
        output_dir=output_dir,
        bucket=bucket,
        shards=train_dataset_shards,
        consume=consume,
        constraints=constraints,
    )
    failed = any(check.status == "fail" for check in checks)
    if json:
        print_json({"ok": not failed, "checks": [check._asdict() for check in checks]})
    else:
        task.show(Console(), checks)
    return FAILED if failed else DONE


def main(args: Sequence[str] | None = None) -> int:
    """Run `maejax ARGS` and return its exit code: 0 done, 2 wrong input, 1 failed, 75 stopped after saving."""
    args = list(sys.argv[1:] if args is None else args)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )
    try:
        if args[:1] == ["plan"]:
            from maejax.commands.plan import preset_flags

            args = ["plan", *preset_flags(args[1:])]
        commands = {
            "train": train_command(mode_of(args)),
            "demo": demo,
            "data": data,
            "pack": pack,
            "reconstruct": reconstruct,
            "inspect": inspect,
            "convert": convert,
            "export": export,
            "features": features,
            "evaluate": evaluate,
            "plan": plan_command(mode_of(args)),
            "doctor": doctor,
        }
        return tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="maejax",
            description="Masked-autoencoder pre-training in JAX.",
            args=args,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except (InputError, Failed) as error:
        Console(stderr=True).print(f"maejax: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        return leave_processes(FAILED if isinstance(error, Failed) else WRONG_INPUT)
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
        raise InputError(f"--mode {mode}: choose one of {', '.join(MODES)}")
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
    from maejax.distributed.processes import join

    return join(
        distributed=machine.distributed,
        coordinator=machine.coordinator,
        num_processes=machine.num_processes,
        process_id=machine.process_id,
    )


def leave_processes(code: int) -> int:
    """Give an exit code back, or end at once if this is one of several processes."""
    if "jax" not in sys.modules:
        return code
    from maejax.distributed.processes import leave

    return leave(code)


def stopped(console: Console, directory: Path) -> int:
    """Say how to go on after a stop."""
    from maejax.storage.mirror import shown

    console.print(f"stopped and saved in {shown(directory)}; start the same command again to go on", highlight=False)
    return STOPPED


def print_json(value: object) -> None:
    """Print a result for programs."""
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    sys.exit(main())
