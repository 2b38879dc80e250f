"""The shell's side of `maejax`: the overview of its commands, completion, and names made of patterns."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from maejax.errors import InputError

SHARD = re.compile(r"\.(tar|tgz|parquet|arrow)(\.\w+)?$")
# What follows tyro's script for a shell: names of files where it finds nothing else.
SHELLS = {
    "bash": "complete -o default -F _tyro_maejax maejax\n",
    "zsh": "",  # it has them
    "fish": "complete --command maejax --force-files\n",
}
OPTIONS = {
    "COMMAND --help": "Say what a command does, and all its flags.",
    "--version": "Print the version.",
    "--completion SHELL": "Print the script with which bash, zsh or fish completes commands and flags: "
    'eval "$(maejax --completion bash)"; for zsh it is a file _maejax in a folder of $fpath.',
}


def print_overview(console: Console, commands: Mapping[str, type]) -> None:
    """Print what `maejax --help` says: each command in a sentence."""
    console.print("usage: maejax COMMAND [OPTIONS]\n\nMasked-autoencoder pre-training in JAX.\n", markup=False)
    sentences = {name: paragraphs(kind)[0] for name, kind in commands.items()}
    for title, rows in (("commands", sentences), ("options", OPTIONS)):
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        for row in rows.items():
            table.add_row(*row)
        console.print(Panel(table, title=title, title_align="left", box=box.ROUNDED), highlight=False)


def completion(words: list[str]) -> list[str]:
    """Return the arguments with which tyro prints the script for a shell; raises InputError for another shell."""
    if len(words) != 1 or words[0] not in SHELLS:
        raise InputError(f"--completion {' '.join(words)}: name one of {', '.join(SHELLS)}")
    return ["--tyro-write-completion", *words, "-"]


def check_arguments(args: list[str]) -> None:
    """Check a command for the work of a shell or of another code's habits; raises InputError with the remedy."""
    train = args[:1] == ["train"]  # it takes one word that comes after no flag
    if args[:1] == ["plan"] and any(arg.partition("=")[0] == "--epochs" for arg in args):
        raise InputError("--epochs: give --training-steps, which is epochs * images / --train-batch-size")
    for at, (before, *names) in enumerate(zip(args, args[1:], args[2:], strict=False)):
        shards = train and (not at or before.replace("_", "-").endswith("-dataset-shards"))
        if not any(name.startswith("-") for name in names) and (shards or all(map(SHARD.search, names))):
            remedy = "put it in quotes" + ", and IMAGES first" * train
            raise InputError(f"{before} {' '.join(names)}: the shell made several names of one; {remedy}")


def paragraphs(kind: type) -> list[str]:
    """Return the paragraphs of a docstring, each as one line."""
    return [" ".join(text.split()) for text in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]


def description(kind: type) -> str:
    """Return a docstring in lines that fit the terminal, indented: tyro joins lines that begin with a letter."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(" ".join(paragraphs(kind)), width, initial_indent="  ", subsequent_indent="  ")
