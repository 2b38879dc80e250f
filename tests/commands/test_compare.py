import json
import shutil
from pathlib import Path

import pytest

from ..pages.test_run_page import parsed


@pytest.fixture
def two(trained):
    """Copy a run under another name, with another rate, a worse loss and an evaluation."""
    other = Path("runs/other")
    shutil.copytree(trained, other)
    config = json.loads((other / "config.json").read_text())
    config["flags"] |= {"learning_rate": 0.25, "name": "<b>other</b>"}
    (other / "config.json").write_text(json.dumps(config))
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    (other / "metrics.jsonl").write_text("".join(json.dumps(line | {"val/loss": 9.0}) + "\n" for line in lines))
    (other / "evaluation").mkdir()
    (other / "evaluation/report.json").write_text(json.dumps({"scores": {"pretrained": {"linear": 71.25}}}))
    return trained, str(other)


def test_two_runs_on_one_page(maejax, two):
    code, printed = maejax("compare", *two, "--out", "pages/both.html", "--json")
    assert code == 0, printed
    result = json.loads(printed)
    assert result["differences"] == {"learning_rate": {"pretrain": 0.05, "other": 0.25}}
    assert result["runs"]["other"]["val/loss"] == 9 and result["runs"]["other"]["evaluate/linear"] == 71.25
    page = parsed("pages/both.html")
    assert "--learning-rate" in page.text and "0.25" in page.text and page.tags.count("svg") > 3
    assert "both.html" in maejax("compare", *two, "--out", "pages/both.html")[1]


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (["runs/pretrain"], "name two run directories"), (["runs/pretrain", "runs"], "runs has no config.json"),
        (["runs/pretrain", "runs/empty"], "runs/empty has nothing to compare yet"),
    ],
)  # fmt: skip
def test_what_is_no_run(maejax, trained, runs, sentence):
    empty = Path("runs/empty")
    empty.mkdir()
    shutil.copy(Path(trained, "config.json"), empty)
    code, printed = maejax("compare", *runs)
    assert code == 2 and sentence in printed, printed
