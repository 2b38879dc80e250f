"""The first hour of somebody new, against the built wheel in a clean environment: each step, its result, its seconds.

    python tests/first_hour.py --photos PHOTOS.tar      # or `make first-hour`

PHOTOS.tar has train, validation and test in it, each with a folder per class. Ends with code 1 at the first result that
is not there. Torch and timm are installed for the last step alone.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
OF_A_CLASS = 40  # photos of a part


class Newcomer:
    """Does one step after the other in a folder, with the commands of a clean environment there."""

    def __init__(self, home: Path):
        self.home, self.bin = home, home / "env" / "bin"
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX_", "VIRTUAL"))
        }
        self.environment = outside | {"XDG_CACHE_HOME": str(home / "cache"), "COLUMNS": "80"}

    def does(self, what: str, *command: str | Path, gives: tuple[str, ...] = (), says: str = "") -> str:
        """Run a command, check what it wrote and said, and print its seconds; return what it said."""
        start = time.monotonic()
        program = self.bin / str(command[0])
        words = [str(program if program.exists() else command[0]), *map(str, command[1:])]
        ended = subprocess.run(words, cwd=self.home, env=self.environment, capture_output=True, text=True)
        printed = ended.stdout + ended.stderr
        missing = [name for name in gives if not (self.home / name).is_file()]
        if ended.returncode or missing or not re.search(says, printed):
            sys.exit(f"{printed}\n{what}: code {ended.returncode}, missing: {missing}, wanted: {says!r}")
        print(f"{what:<34} {time.monotonic() - start:6.0f} s", flush=True)
        return printed

    def opens(self, what: str, run: str) -> None:
        """Start the playground, ask for its page, and end it."""
        start = time.monotonic()
        command = [str(self.bin / "maejax"), "serve", run, "--port", "0"]
        serving = subprocess.Popen(
            command, cwd=self.home, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert serving.stdout is not None
        try:
            said = []
            for line in serving.stdout:
                said.append(line)
                if found := re.search(r"http://[\d.]+:\d+", line):
                    page = urllib.request.urlopen(found[0], timeout=60).read().decode()
                    break
            else:
                sys.exit(f"{''.join(said)}\n{what}: it ended")
        finally:
            serving.terminate()
            serving.wait(timeout=60)
        if "playground" not in page:
            sys.exit(f"{what}: another page: {page[:200]}")
        print(f"{what:<34} {time.monotonic() - start:6.0f} s", flush=True)


def unpack(photos: Path, folder: Path) -> None:
    """Write some photos of each class of each part."""
    seen: dict[str, int] = {}
    if not photos.is_file():
        sys.exit(f"--photos {photos}: not found; name a tar with train, validation and test in it")
    with tarfile.open(photos) as tar:
        for member in tar:
            *_, part, kind, name = ("", "", *Path(member.name).parts)
            seen[part + kind] = seen.get(part + kind, 0) + 1
            if member.isfile() and part in ("train", "validation", "test") and seen[part + kind] <= OF_A_CLASS:
                place = folder / part / kind / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]


def of_card(hub: Path, photo: Path) -> str:
    """Return the lines of a model card for timm, with the folder here in the place of the hub."""
    blocks = re.findall(r"```python\n(.*?)```", (hub / "README.md").read_text(), re.DOTALL)
    code = next(block for block in blocks if "import timm" in block).replace("photo.jpg", str(photo))
    code = (ROOT / "tests/golden/peers.py").read_text() + code  # torchvision may be of another build than torch
    return re.sub(r'hf_hub_download\("[^"]*", "([^"]*)"\)', rf'"{hub}/\1"', code) + "\nprint(tuple(out.shape))"


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared/data/clothing-small.tar")
    parser.add_argument("--budget", default="2m", help="of the training on photos")
    given = parser.parse_args()
    constraints = ROOT / f"constraints/python{sys.version_info[0]}.{sys.version_info[1]}.txt"
    with tempfile.TemporaryDirectory(prefix="maejax-first-hour-") as name:
        home = Path(name)
        someone, start = Newcomer(home), time.monotonic()
        unpack(given.photos, home / "photos")
        someone.does("build the wheel", sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", home, ROOT)
        venv.create(home / "env", with_pip=True)
        install = ("pip", "install", "--disable-pip-version-check", "--constraint", constraints)
        (wheel,) = home.glob("maejax-*.whl")
        someone.does("install it", *install, f"{wheel}[serve]")
        someone.does("look for help", "maejax", "--help", says="usage: maejax COMMAND")
        someone.does("demo, 100 steps", "maejax", "demo", "--training-steps", "100", gives=("runs/demo/report.html",))
        someone.does("look at the photos", "maejax", "data", "photos/train")
        train = ("maejax", "train", "photos", "--budget", given.budget, "--name", "mine")
        left = tuple(f"runs/mine/{name}" for name in ("config.json", "metrics.jsonl", "report.html"))
        someone.does(f"train on them for {given.budget}", *train, gives=left, says="repeat   maejax train")
        photo = next((home / "photos/test").rglob("*.jpg"))
        someone.does("reconstruct one", "maejax", "reconstruct", "runs/mine", photo, says=r"\.png")
        both = ("--train-dataset-shards", "photos/train", "--valid-dataset-shards", "photos/test")
        judge = ("maejax", "evaluate", "runs/mine", *both, "--protocol", "knn,linear")
        someone.does("evaluate", *judge, gives=("evaluation/report.html", "evaluation/report.json"))
        scores = json.loads((home / "evaluation/report.json").read_text())["scores"]
        someone.does("compare two runs", "maejax", "compare", "runs/mine", "runs/demo", gives=("comparison.html",))
        someone.opens("open the playground", "runs/mine")
        card = ("hub/config.json", "hub/README.md", "hub/model.safetensors")
        someone.does("export", "maejax", "export", "runs/mine", "--out", "hub", gives=card)
        someone.does("install timm", *install, "torch", "timm")
        someone.does("load it in timm", "python", "-c", of_card(home / "hub", photo), says=r"\(1, \d+\)")
        print(f"{'all of it':<34} {time.monotonic() - start:6.0f} s")
        for kind, found in scores.items():
            print(f"{kind:<12} 20-NN {found['knn_20']:.1f} %, linear {found['linear']:.1f} %")


if __name__ == "__main__":
    main()
