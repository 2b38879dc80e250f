"""The command line: the table of commands, `--json`, the exit codes, and one sentence for every error."""

import argparse
import dataclasses
import errno
import inspect
import json
import logging
import os
import sys
import typing
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Annotated, Any, Union

import tyro
from rich.console import Console
from rich.logging import RichHandler
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from maejax.commands.command import DONE, FAILED, WRONG_INPUT, Command, explain_out_of_memory, help_of
from maejax.commands.launch import LaunchCommand, split
from maejax.commands.placement import run_placed
from maejax.commands.plan import PlanCommand, preset_flags
from maejax.commands.recipe import RecipeCommand, divide
from maejax.commands.shell import SHELLS, check_arguments, completion, description, paragraphs, print_overview
from maejax.commands.train import TrainCommand
from maejax.console import PrintableFormatter, Terminal, plain, reserve_stdout
from maejax.errors import Failed, FetchError, InputError
from maejax.recipes import recipe
from maejax.storage.redact import redact
from maejax.version import name_version

# In the order of the help; `train` is TrainCommand of maejax.commands.train.
_NAMES = (
    "demo data pack train recipe compare reconstruct serve evaluate features inspect convert export push "
    "plan launch doctor"
)
COMMANDS: dict[str, type[Command]] = {
    name: getattr(import_module(f"maejax.commands.{name}"), f"{name.capitalize()}Command") for name in _NAMES.split()
}
# The system's errors for a path that is not there, or is not what it should be; all others come on the way.
WRONG_PATH = {"EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG", "ELOOP"}


def main(args: Sequence[str] | None = None) -> int:
    """Run `maejax ARGS` and return its exit code: 0 done, 2 wrong input, 1 failed, 75 stopped after saving."""
    args = list(sys.argv[1:] if args is None else args)
    errors = Console(stderr=True)
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        if args == ["--version"]:
            print(f"maejax {name_version()}")
            return DONE
        if args in (["-h"], ["--help"]):
            print_overview(Console(), COMMANDS)
            return DONE
        if args[:1] == ["--completion"]:
            with suppress(SystemExit):
                parse(completion(args[1:]))
            print(SHELLS[args[1]], end="")
            return DONE
        command = parse(["plan", *preset_flags(args[1:])] if args[:1] == ["plan"] else args)
        with reserve_stdout(command.json), explain_out_of_memory(command):
            result = run_placed(command, Terminal(stderr=command.json or not command.to_stdout))
        if command.json:
            print(json.dumps(result, indent=2))
        else:
            command.show(Console(), result)
            if command.exit_code(result) == DONE and (following := command.following(result)):
                plain(errors, f"next     {redact(following)}")
        return command.exit_code(result)
    except (InputError, FetchError, Failed) as error:
        code, sentence = FAILED if isinstance(error, Failed) else WRONG_INPUT, str(error)
    except BrokenPipeError:  # whoever read the output has ended; nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        code = WRONG_INPUT if errno.errorcode.get(error.errno or 0) in WRONG_PATH else FAILED
        sentence = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        code, sentence = FAILED, "interrupted"
    plain(errors, f"maejax: {redact(sentence)}", style="bold red")
    if "jax" not in sys.modules:
        return code
    from maejax.distributed.processes import leave

    return leave(code)


def parse(args: list[str]) -> Command:
    """Read a command from its arguments; the published recipe of --mode gives the defaults of `train` and `plan`."""
    check_arguments(args)
    registry = ConstructorRegistry()
    registry.struct_rule(arguments_of)
    read = partial(tyro.cli, config=(tyro.conf.OmitArgPrefixes,), registry=registry)
    if args and args[0] in COMMANDS:
        kind, default = COMMANDS[args[0]], tyro.MISSING
        if kind in (TrainCommand, PlanCommand):
            early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
            early.add_argument("--mode", nargs="?", const="", default="pretrain")
            default = kind(recipe(early.parse_known_args(args)[0].mode))  # type: ignore[call-arg]
        cut = {LaunchCommand: split, RecipeCommand: divide}.get(kind)
        own, further = cut(args[1:]) if cut else (args[1:], [])
        command = read(kind, default=default, prog=f"maejax {args[0]}", description=description(kind), args=own)
        if isinstance(command, TrainCommand | PlanCommand):
            names = (arg.removeprefix("--").partition("=")[0] for arg in args if arg.startswith("--"))
            given = frozenset(name.replace("-", "_").removeprefix("no_") for name in names)
            return dataclasses.replace(command, given=given)
        if isinstance(command, LaunchCommand):
            return dataclasses.replace(command, command=tuple(further), inner=parse(further))
        if isinstance(command, RecipeCommand):
            return dataclasses.replace(command, flags=tuple(further))
        return command
    kinds = (
        Annotated[kind, tyro.conf.subcommand(name, description=paragraphs(kind)[0])] for name, kind in COMMANDS.items()
    )
    return read(Union[tuple(kinds)], prog="maejax", args=args)  # type: ignore[arg-type]  # noqa: UP007


def arguments_of(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Describe the fields of our dataclasses to tyro; see `Command` and `Config` for their metadata."""
    kind = info.type
    if not (dataclasses.is_dataclass(kind) and kind.__module__.startswith("maejax.")):
        return None
    types, specs, own = typing.get_type_hints(kind, include_extras=True), [], inspect.get_annotations(kind)
    for field in sorted(dataclasses.fields(kind), key=lambda field: (field.name == "json", field.name not in own)):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = getattr(info.default, field.name, tyro.MISSING if default is dataclasses.MISSING else default)
        named, marks = field.metadata.get("positional"), []
        if named:
            marks += [tyro.conf.Positional, tyro.conf.arg(metavar=named)]
            if default is tyro.MISSING:
                marks.append(tyro.conf.arg(help_behavior_hint="(required)"))
        if "title" in field.metadata:
            marks.append(tyro.conf.arg(name=field.metadata["title"]))
        elif default is None or default is False or default in ("", ()):  # their help says what they mean
            marks.append(tyro.conf.arg(help_behavior_hint=""))
        if len(of := typing.get_args(types[field.name])) == 2 and of[0] in (int, float) and of[1] is type(None):
            marks.append(tyro.conf.arg(metavar=of[0].__name__.upper()))
        if issubclass(kind, Command) and types[field.name] is bool:
            marks.append(tyro.conf.FlagCreatePairsOff)
        if field.init and "hidden" not in field.metadata:
            annotated: Any = Annotated[(types[field.name], *marks)] if marks else types[field.name]
            specs.append(StructFieldSpec(field.name, annotated, default, partial(help_of, kind, field.name)))
    return StructConstructorSpec(instantiate=kind, fields=tuple(specs))
