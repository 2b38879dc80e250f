"""What `maejax` and other programs are where the pages' commands are executed: the same, shortened, or a stand-in.

    python tests/shortened.py NAME ARGUMENTS      # in the folder that tests/test_snippets.py makes

`maejax` gets tiny sizes and few steps. Programs for hardware and accounts that are not here do nothing.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIZES = "--image-size 16 --patch-size 4 --layers 2 --dim 16 --heads 2"
DECODER = "--dec-layers 1 --dec-dim 8 --dec-heads 2"
STEPS = (
    "--train-batch-size 8 --valid-batch-size 8 --warmup-steps 1 --training-steps 3 --log-interval 1 --eval-interval 0"
)
WORKERS = "--train-loader-workers 0 --valid-loader-workers 0"
INSTEAD = {  # of what is said twice, or long, or only elsewhere
    r"\{0000\.\.1023\}": "{0000..0003}",
    r"\{00\.\.63\}": "{00..00}",
    r"gs://b/": "gs://mine/",
    r"hf://datasets/OWNER/NAME/train-\*\.tar": "shards/shards-*.tar",
}


def maejax(args: list[str]) -> int:
    """Run a command of maejax with less to do; return its exit code, 0 where a report of faults is what it is for."""
    for old, new in INSTEAD.items():
        args = [re.sub(old, new, arg) for arg in args if arg != "..."]
    if any(".pth" in arg for arg in args) and importlib.util.find_spec("torch") is None:
        print("not run: .pth needs PyTorch, which `make site-check` installs")
        return 0
    shorten = {"train": train, "plan": plan, "demo": demo, "features": features}
    shorten |= {"evaluate": lambda a: [*a, "--protocol", "knn"], "serve": lambda a: [*a, "--port", "0"]}
    args = shorten.get(args[0], list)(args)
    command = [sys.executable, "-m", "maejax", *args]
    if args[0] == "serve" and "--host" not in args:
        return served(command)
    code = subprocess.run(command).returncode
    return 0 if args[0] == "doctor" and code == 1 else code  # it may find that this machine is not ready


def train(args: list[str]) -> list[str]:
    """Shorten a training: tiny sizes, three steps; with a budget of seconds where it chooses by itself."""
    if "--name" in args:
        make_way(args[args.index("--name") + 1])
    else:  # no page comes back to such a run
        args = [*args, "--name", f"unnamed-{len(list(Path('runs').iterdir()))}"]
    chosen = not args[1:2] or not args[1].startswith("--")
    if chosen:
        args = ["n12" if arg == "s16" else "1" if arg == "400" else arg for arg in args]  # another model, of one epoch
        return [*without(args, "--budget"), "--budget", "10s"]
    args = without(args, "--epochs", "--warmup-epochs")
    if not {"--train-dataset-shards", "--train_dataset_shards", "--eval-only"} & set(args):
        args += ["--train-dataset-shards", "photos/"]
    args += [*SIZES.split(), *DECODER.split(), *STEPS.split(), *WORKERS.split()]
    if "wsd" in args:
        args += ["--cooldown-steps", "1", "--training-steps", "6"]
    return args + ["--freeze-encoder-steps", "1"] * ("--freeze-encoder-steps" in args)


def demo(args: list[str]) -> list[str]:
    """Shorten the demo."""
    make_way("demo")
    return [*args, "--training-steps", "20"]


def make_way(name: str) -> None:
    """Remove the stand-in for a run that the page trains itself."""
    for stand_in in Path("runs").glob(f"{name}/.stand-in"):
        shutil.rmtree(stand_in.parent)


def plan(args: list[str]) -> list[str]:
    """Plan a tiny step for this machine's processor, whose compiler is here."""
    args = without([arg for arg in args if arg != "--largest-batch"], "--topology")
    return [*args, "--topology", "cpu", *SIZES.split(), *STEPS.split()[:2]]


def features(args: list[str]) -> list[str]:
    """Compute one part of one: the block gathers parts of which it computes one."""
    return [*without(args, "--part"), "--part", "0/1"] if "--part" in args else args


def without(args: list[str], *flags: str) -> list[str]:
    """Leave out flags with their value."""
    return [arg for before, arg in zip(["", *args], args, strict=False) if not {before, arg} & set(flags)]


def served(command: list[str]) -> int:
    """Start the playground, wait for its address, and end it."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        said = ""
        for line in server.stderr or ():
            said += line
            if "http://127.0.0.1:" in line:
                server.terminate()
                return 0
    print(said)
    return 1


def pip(args: list[str]) -> int:
    """Look whether the extras and files of constraints that pip is to take are there; install nothing."""
    extras = {extra for arg in args for found in re.findall(r"\[([\w,]+)\]", arg) for extra in found.split(",")}
    files = [args[i + 1] for i, arg in enumerate(args) if arg == "-c"]
    declared = (ROOT / "pyproject.toml").read_text()
    missing = [extra for extra in extras if not re.search(rf"^{extra} = \[", declared, re.MULTILINE)]
    missing += [name for name in files if not (ROOT / name).exists()]
    print(*missing)
    return len(missing)


def python(args: list[str]) -> int:
    """Run the original's command and its converters; see that a benchmark, which takes hours, parses."""
    if args[0] == "src/main.py":
        return maejax(["train", *args[1:]])
    if args[0].startswith("scripts/convert"):
        if importlib.util.find_spec("torch") is None:
            print("not run: .pth needs PyTorch")
            return 0
        return subprocess.run([sys.executable, *args]).returncode
    if args[:2] == ["-m", "venv"]:
        return 0
    compile((ROOT / args[0]).read_text(), args[0], "exec")
    return 0


def elsewhere(name: str) -> int:
    """Say that a program was not run."""
    print(f"not run: {name}")
    return 0


def main(name: str, args: list[str]) -> int:
    """Run a program, or what stands for it."""
    if name in ("python", "python3"):
        return python(args)
    if name == "make":
        return subprocess.run(
            [os.environ["REAL_MAKE"], "-n", "-C", str(ROOT), *args], stdout=subprocess.DEVNULL
        ).returncode
    if name == "pod":
        pod = [str(ROOT / "scripts/pod"), *args, "--dry-run"]
        return subprocess.run(pod, env=os.environ | {"GCS_DATASET_DIR": "gs://b/sets"}).returncode
    return {"maejax": maejax, "pip": pip}.get(name, lambda _: elsewhere(name))(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
