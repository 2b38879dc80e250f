"""The metrics of a run so far, as curves that stay small however long it trains."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maejax.training.log import read_lines
from maejax.training.rundir import read_config

POINTS = 400  # of a curve at most; beyond that, neighbours are averaged two by two


class Curve:
    """The values of a metric, each step once: their average over equal stretches, the `last`, the `least` and `most`.

    The three are pairs of a step and a value.
    """

    def __init__(self):
        self._points: list[tuple[float, float]] = []
        self._stretch, self._open = 1, []
        self.last = self.least = self.most = (-1, float("nan"))

    def add(self, step: int, value: float) -> None:
        """Add the value of a later step; one of a step that is known already is left out."""
        if step <= self.last[0]:
            return
        first, self.last = self.last[0] < 0, (step, value)
        self.least = self.last if first or value < self.least[1] else self.least
        self.most = self.last if first or value > self.most[1] else self.most
        self._open.append(self.last)
        if len(self._open) == self._stretch:
            self._points.append(_mean(self._open))
            self._open = []
        if len(self._points) == POINTS:
            self._points = [_mean(pair) for pair in zip(self._points[::2], self._points[1::2], strict=True)]
            self._stretch *= 2

    @property
    def points(self) -> list[tuple[float, float]]:
        """The curve as pairs of step and value."""
        return [*self._points, _mean(self._open)] if self._open else self._points


def _mean(points: list[tuple[float, float]] | tuple[tuple[float, float], ...]) -> tuple[float, float]:
    return sum(step for step, _ in points) / len(points), sum(value for _, value in points) / len(points)


class History:
    """A run as its config.json and curves by the name of the metric.

    `seconds` and `device_seconds` are those of the training steps: compiling, evaluating and saving do not count.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config, self.curves, self.step = config, {}, 0
        self.seconds = self.device_seconds = 0.0
        self.devices = 1

    @classmethod
    def read(cls, directory: Path, until: float = float("inf")) -> "History":
        """Read a run directory, of metrics.jsonl the lines up to a step; without config.json, it has no flags."""
        history = cls(read_config(directory) or {"flags": {}})
        for line in read_lines(directory / "metrics.jsonl"):
            if line["step"] <= until:
                history.add(line)
        return history

    def add(self, line: Mapping[str, float]) -> None:
        """Add a line of metrics.jsonl."""
        step, rate = int(line["step"]), line.get("train/images_per_second")
        if rate and step > self.last("train/images_per_second")[0]:
            before = max(0, self.last("train/loss")[0])
            seconds = (step - before) * line.get("processed_samples", 0) / step / rate
            self.devices = round(rate / line.get("train/images_per_second_per_device", rate))
            self.seconds, self.device_seconds = self.seconds + seconds, self.device_seconds + self.devices * seconds
        self.step = max(self.step, step)
        for name, value in line.items():
            if name != "step":
                self.curves.setdefault(name, Curve()).add(step, value)

    def last(self, name: str) -> tuple[int, float]:
        """Return the last step of a metric and its value, -1 and nan without one."""
        return self.curves[name].last if name in self.curves else (-1, float("nan"))

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return the curve of a metric, empty without one."""
        return self.curves[name].points if name in self.curves else []

    @property
    def stop(self) -> int:
        """The last step of the run, 0 if it is not known."""
        return int(self.config["flags"].get("training_steps", 0))

    def changed(self, usual: Mapping[str, Any]) -> dict[str, Any]:
        """Return the flags that differ from the usual ones."""
        flags = self.config["flags"]
        return {name: value for name, value in flags.items() if value != json.loads(json.dumps(usual.get(name)))}
