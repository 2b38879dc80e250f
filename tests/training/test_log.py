"""metrics.jsonl: every step once, whatever was cut off."""

from rich.console import Console

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


def test_a_full_disk_delays_lines_and_loses_none(tmp_path, caplog, full_disk):
    with RunLog(tmp_path, 0, 3, Console(quiet=True)) as log:
        log.write(1, {"val/loss": 1.0})
        with full_disk():
            log.write(2, {"val/loss": 0.5})
        assert "metrics.jsonl cannot be written" in caplog.text
        log.write(3, {"val/loss": float("nan"), "val/acc1": 1.0})
    assert read_metrics(tmp_path / "metrics.jsonl", "val/loss") == [(1, 1.0), (2, 0.5)]
    assert read_metrics(tmp_path / "metrics.jsonl", "val/acc1") == [(3, 1.0)]
