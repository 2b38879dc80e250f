"""`maejax recipe`: the published recipes, which are the shell scripts of `config/`; a wheel has them in the package.

What differs from pre-training in each `--mode` is in `maejax.recipes`, and has no command.
"""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from maejax.commands.command import Command
from maejax.console import literal
from maejax.errors import InputError

# What a script reads, the flags that do without it, and what it is.
VARIABLES = {
    "GCS_DATASET_DIR": (
        ("train-dataset-shards", "valid-dataset-shards", "output-dir"),
        "the folder of imagenet-1k-wds",
    ),
    "GCS_MODEL_PATH": (("pretrained-ckpt",), "the weights to start from"),
}


@dataclass(frozen=True)
class RecipeCommand(Command):
    """List, show or run the published recipes of pre-training, probing, fine-tuning and the paper's ablations.

    `maejax recipe run NAME FLAGS` trains: FLAGS are those of `maejax train`, and win. `plan` and `launch` take NAME.sh.
    """

    verb: Literal["list", "show", "run"] = field(metadata={"positional": "list|show|run"})
    """list: all names, and what each is for. show: the script. run: the training."""
    name: str = field(default="", metadata={"positional": "NAME"})
    """A recipe, for show and run."""
    flags: tuple[str, ...] = field(default=(), kw_only=True, metadata={"hidden": True})
    """More flags for the training."""

    def run(self, console: Console) -> Any:
        """Return the names, or the text of one; or become the training, so that signals and exit codes pass."""
        if self.verb == "list":
            if self.name:
                raise InputError(f"recipe list {self.name}: leave {self.name} out, or take `maejax recipe show`")
            return [{"name": name, "about": about_of(path), "path": str(path)} for name, path in scripts().items()]
        path = find_script(self.name)
        if self.verb == "show":
            return {"name": path.stem, "path": str(path), "text": path.read_text()}
        check_variables(path, self.flags)
        if not shutil.which("bash"):
            raise InputError("recipe run: bash is missing, and recipes are its scripts; install it")
        here = Path(sys.executable).parent  # the script starts `maejax`, which is to be this one
        places = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        return os.execvpe("bash", ["bash", str(path), *self.flags], places)

    def show(self, console: Console, result: Any) -> None:
        """Print the names as a table, or a script as it is."""
        from rich.table import Table

        if self.verb == "show":
            print(result["text"], end="")
            return
        table = Table("recipe", "what it is for", box=None, pad_edge=False)
        for each in result:
            table.add_row(literal(each["name"]), literal(each["about"]))
        console.print(table)


def divide(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of `recipe`, and the flags for the training after `run NAME`."""
    own = 2 if args[:1] == ["run"] else len(args)
    return list(args[:own]), list(args[own:])


def scripts() -> dict[str, Path]:
    """Return the recipes by name: pre-training first, the ablations last."""
    package = Path(__file__).parents[1]
    installed = package / "recipe_scripts"  # in a wheel, by pyproject.toml; a clone has the folder `config`
    folder = installed if installed.is_dir() else package.parents[1] / "config"
    order = ("pretrain", "linear_probe", "finetune", "ablations")
    return {path.stem: path for kind in order for path in sorted((folder / kind).glob("*.sh"))}


def about_of(path: Path) -> str:
    """Return the first comment of a recipe: what it is for."""
    return path.read_text().splitlines()[1].removeprefix("# ")


def find_script(name: str) -> Path:
    """Return a recipe by its name, with or without `.sh`. Raises InputError if there is none."""
    known = scripts()
    if not name:
        raise InputError("NAME is missing: `maejax recipe list` has the names")
    if name.removesuffix(".sh") in known:
        return known[name.removesuffix(".sh")]
    near = get_close_matches(name, known, 1)
    raise InputError(f"{name} is no recipe: take {near[0] if near else 'a name'} of `maejax recipe list`")


def check_variables(path: Path, flags: Sequence[str]) -> None:
    """Check that all is set which a recipe reads. Raises InputError with the variable and the flags instead of it."""
    given = {flag.removeprefix("--").partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}
    if "-h" in flags or given & {"help", "print-config"}:
        return
    text = path.read_text()
    if base := re.search(r"/\.\./([\w/-]+\.sh)", text):  # an ablation starts another recipe
        text += (path.parents[1] / base[1]).read_text()
    if os.environ.get("OUTPUT_DIR"):
        given.add("output-dir")
    for variable, (instead, about) in VARIABLES.items():
        needed = [flag for flag in instead if flag not in given]
        if f"${variable}" in text and not os.environ.get(variable) and needed:
            flags_needed = " and ".join(f"--{flag}" for flag in needed)
            raise InputError(f"{path.stem} reads ${variable}: set it to {about}, or give {flags_needed}")
