"""The walls of the house: who may import whom."""

import ast
from pathlib import Path

import maejax

PACKAGE = Path(maejax.__file__).parent
# A room may import from the rooms behind it, never from those before it.
ROOMS = [
    "cli", "api", "commands", "tasks", "playground", "plan", "pages", "evaluation", "weights", "training", "data",
    "models", "ops", "distributed", "storage", "console", "recipes", "config", "options", "pixels", "version", "errors",
]  # fmt: skip
ONLY_IN = {
    "tyro": "cli.py", "orbax": "training/checkpoint.py", "wandb": "training/trackers.py",
    "tensorboardX": "training/trackers.py", "torch": "weights/containers.py", "yaml": "commands/engines.py",
    "starlette": "playground/server.py", "uvicorn": "playground/server.py",
}  # fmt: skip
NEVER = {"tensorflow", "timm", "transformers"}
# All that these may import.
APART = {
    "training": {"models", "ops", "distributed", "storage", "errors"}, "data": {"storage", "errors"},
    "models": {"ops", "errors"}, "ops": {"errors"}, "distributed": {"errors"}, "storage": {"errors"},
    "console": {"errors"}, "recipes": {"config", "errors"}, "config": {"options", "errors"},
    "options": {"pixels"},
    "pixels": set(), "version": set(), "errors": set(),
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def test_imports_go_one_way():
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        room = relative.parts[0].removesuffix(".py")
        for name in imports(path):
            top, *rest = name.split(".")
            assert top not in NEVER, f"{relative} imports {top}"
            assert top not in ONLY_IN or str(relative) == ONLY_IN[top], f"{relative} imports {top}"
            if top == "maejax" and rest and room in ROOMS and rest[0] != room:
                assert ROOMS.index(rest[0]) > ROOMS.index(room), f"{relative} imports {name}"
                assert rest[0] in APART.get(room, ROOMS), f"{relative} imports {name}"


def test_data_and_storage_never_touch_jax():
    for path in [path for room in ("data", "storage") for path in (PACKAGE / room).rglob("*.py")]:
        assert not {"jax", "flax", "optax"} & {name.split(".")[0] for name in imports(path)}, path


def test_no_two_files_of_one_name_and_no_class_twice():
    files = [path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert len(files) == len(set(files)), sorted(name for name in set(files) if files.count(name) > 1)
    classes = [
        node.name for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]  # fmt: skip
    assert len(classes) == len(set(classes)), sorted(name for name in set(classes) if classes.count(name) > 1)
