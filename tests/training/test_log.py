"""metrics.jsonl: every step once, whatever was cut off."""

import io
import re
import sys

import pytest
from rich.console import Console

from maejax.console import Terminal
from maejax.training.log import RunLog, read_metrics


def test_a_continued_run_logs_every_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 3.0}\n{"step": 4, "train/loss": 2.0}\n{"step": 5, "tr')
    with RunLog(tmp_path, 2, 6, Console(quiet=True)) as log:
        log.report(4, {"train/loss": 1.5})
        log.write(4, {"val/loss": 1.0})
    assert read_metrics(path, "train/loss") == [(1, 3.0), (4, 1.5)]
    assert read_metrics(path, "val/loss") == [(4, 1.0)]


def test_no_terminal_gets_plain_lines(tmp_path, capsys):
    with RunLog(tmp_path, 0, 200, Console(force_terminal=False)) as log:
        log.advance(1)
        log.report(100, {"train/loss": 0.5, "train/images_per_second": 1234.5, "train/eta_seconds": 61.4})
    out = capsys.readouterr().out
    assert "step 100/200  loss 0.5000  1,23" in out and "ETA 0:01:01" in out


class Screen(io.StringIO):
    """A terminal that keeps all it gets."""

    def isatty(self):
        return True


def log_to_screen(tmp_path, monkeypatch, **variables):
    """Return what a terminal gets of a run that ends with an exception."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    metrics = {"train/loss": 0.5, "train/images_per_second": 1234.5, "train/eta_seconds": 61.4}
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, 0, 200, Terminal()) as log:
        log.advance(1)
        log.report(100, {**metrics, "train/learning_rate": 1.5e-4, "train/input_wait": 0.031, "host/peak_memory": 2e9})
        log.write(100, {"val/loss": 0.75})
        log.message("a line")
        raise KeyboardInterrupt
    assert sys.stdout is screen and "a line\n" in screen.getvalue()
    return screen.getvalue()


def test_a_terminal_gets_a_table_that_leaves_it_clean(tmp_path, monkeypatch):
    drawn = log_to_screen(tmp_path, monkeypatch)
    assert "\x1b[?25l" not in drawn and "step 100/200" not in drawn  # never without a cursor
    drawn = re.sub(r"\x1b\[[\d;]*m", "", drawn)
    assert re.search(r"loss +val loss +rate +images/s +wait +memory +ETA", drawn)
    assert re.search(r"0.5000 +0.7500 +1.50e-04 +1,23\d +3% +2.0 GB .*\n$", drawn)  # the last line


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_table_gets_plain_lines(tmp_path, monkeypatch, variables):
    drawn = log_to_screen(tmp_path, monkeypatch, **variables)
    assert "step 100/200  loss 0.5000  1,23" in drawn and "\x1b" not in drawn and "wait" not in drawn


def test_a_full_disk_delays_lines_and_loses_none(tmp_path, caplog, full_disk):
    with RunLog(tmp_path, 0, 3, Console(quiet=True)) as log:
        log.write(1, {"val/loss": 1.0})
        with full_disk():
            log.write(2, {"val/loss": 0.5})
        assert "metrics.jsonl cannot be written" in caplog.text
        log.write(3, {"val/loss": float("nan"), "val/acc1": 1.0})
    assert read_metrics(tmp_path / "metrics.jsonl", "val/loss") == [(1, 1.0), (2, 0.5)]
    assert read_metrics(tmp_path / "metrics.jsonl", "val/acc1") == [(3, 1.0)]
