"""Speed of this checkout over another one of itself: loader, step, and the loop's time outside the step.

    git worktree add /tmp/before COMMIT
    python benchmarks/against.py /tmp/before --data PHOTOS.tar [--rounds 9] [--parts loader demo vit-b-quarter overhead]

Each side runs its own checkout's benchmarks in its own process. The two take turns and change their order every round.
Prints the other checkout's time over this one's: 1 is equal, more is faster. Loader and step are CPU time on
one core, the loop is wall time.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
LOADER = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
import loader
batches = loader.endless(loader.open_source(sys.argv[1]))
for line in sys.stdin:
    print([0, loader.ours_whole(batches, int(line) * loader.BATCH)], flush=True)
"""
PARTS = ("loader", "demo", "vit-b-quarter", "overhead")
STEPS = {"loader": 2, "demo": 3, "vit-b-quarter": 2}  # that a side takes in its turn


class Side:
    """A checkout's loader or step: a process that answers a number of steps with [wall, CPU] seconds."""

    def __init__(self, checkout: Path, part: str, data: str):
        scripts = checkout / "benchmarks"
        command = [str(scripts / "step.py"), "--workload", part, "--cores", "1", "--serve", "jax-float32"]
        if part == "loader":
            command = ["-c", LOADER, data]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": f"{checkout / 'src'}:{scripts}"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def take(self, steps: int) -> float:
        """Take steps, or batches of the loader; return their CPU seconds."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side failed; its message is above")
        return json.loads(line)[1]

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def in_turn(part: str, checkouts: list[Path], data: str, rounds: int) -> list[list[float]]:
    """Time a part of both checkouts in turn: pairs of seconds."""
    sides = [Side(checkout, part, data) for checkout in checkouts]
    for side in sides:
        side.take(5)  # compiles, and meets its memory
    found = []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        took = {i: sides[i].take(STEPS[part]) for i in order}
        found.append([took[0], took[1]])
    for side in sides:
        side.close()
    return found


def loops(checkout: Path) -> tuple[float, float]:
    """Run the checkout's benchmarks/overhead.py; return milliseconds of the host's work and of a step in the loop."""
    command = [sys.executable, str(checkout / "benchmarks/overhead.py"), "--turns", "6", "--steps", "30"]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"host's work ([\d.]+) ms, loop ([\d.]+) ms", printed)
    host, loop = zip(*[(float(a), float(b)) for a, b in rows], strict=True)
    return statistics.median(host), statistics.median(loop)


def show(name: str, pairs: list[list[float]]):
    """Print the median and the range of the other checkout's time over this one's."""
    ratios = [before / now for before, now in pairs]
    print(f"{name}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--data", required=True, help="photos for the loader")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    checkouts = [given.checkout.resolve(), HERE]
    for part in given.parts:
        if part != "overhead":
            show(part, in_turn(part, checkouts, str(Path(given.data).resolve()), given.rounds))
            continue
        turns = [(loops(checkouts[0]), loops(checkouts[1])) for _ in range(max(1, given.rounds // 3))]
        show("overhead, host's work of a step", [[before[0], now[0]] for before, now in turns])
        show("overhead, a step in the loop", [[before[1], now[1]] for before, now in turns])


if __name__ == "__main__":
    main()
