"""`maejax recipe`, and the version that names a commit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maejax import version
from maejax.commands import recipe

from ..conftest import ROOT

NAME = "pretrain-vit-l16-224-in1k-800ep"


def test_list_has_all_recipes_and_show_is_the_script(maejax):
    listed = json.loads(maejax("recipe", "list", "--json")[1])
    assert {each["path"] for each in listed} == {str(path) for path in (ROOT / "config").glob("*/*.sh")}
    assert listed[0]["name"].startswith("pretrain-vit-b16") and all(len(each["about"]) > 20 for each in listed)
    code, printed = maejax("recipe", "list")
    assert code == 0 and "Paper, Figure 5: 90 % of the patches hidden" in printed
    assert maejax("recipe", "show", NAME) == (0, (ROOT / f"config/pretrain/{NAME}.sh").read_text())


def test_run_is_replaced_by_the_script(maejax, monkeypatch):
    """Its flags come after the script's, and the script finds this Python's maejax first."""
    started = []
    monkeypatch.setattr(os, "execvpe", lambda *args: started.append(args) or {})
    monkeypatch.setattr(recipe.RecipeCommand, "show", lambda *_: None)
    monkeypatch.setenv("GCS_DATASET_DIR", "gs://bucket")
    assert maejax("recipe", "run", NAME, "--name", "mine", "--help")[0] == 0
    ((program, words, places),) = started
    assert (program, words) == ("bash", ["bash", str(ROOT / f"config/pretrain/{NAME}.sh"), "--name", "mine", "--help"])
    assert places["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_an_installed_package_has_its_own_scripts_and_plan_takes_them(maejax, monkeypatch, tmp_path):
    package = tmp_path / "site-packages/maejax"
    (package / "recipe_scripts/pretrain").mkdir(parents=True)
    (package / "recipe_scripts/pretrain/mine.sh").write_text("# one\n# two\nexec maejax train --dim 8\n")
    monkeypatch.setattr(recipe, "__file__", str(package / "commands/recipe.py"))
    assert [each["name"] for each in json.loads(maejax("recipe", "list", "--json")[1])] == ["mine"]
    from maejax.commands.plan import preset_flags

    assert preset_flags(["mine.sh", "--heads", "2"]) == ["--dim", "8", "--heads", "2"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("run pretrain-vit-l16", f"pretrain-vit-l16 is no recipe: take {NAME} of `maejax recipe list`"),
        ("run", "NAME is missing"),
        ("list x", "recipe list x: leave x out"),
        (f"run {NAME}", f"{NAME} reads $GCS_DATASET_DIR: set it to the folder of imagenet-1k-wds, or give --t"),
        (f"run {NAME} --train_dataset_shards a --valid-dataset-shards=", "or give --output-dir"),
        ("run figure9-blocks-0 --train-dataset-shards a --valid-dataset-shards= --output-dir b", "_MODEL_PATH: set"),
    ],
)
def test_wrong_words_get_one_sentence(maejax, monkeypatch, words, sentence):
    for name in (*recipe.VARIABLES, "OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "execvpe", lambda *_: pytest.fail("it ran"))
    code, printed = maejax("recipe", *words.split())
    assert code == 2 and sentence in printed and printed.count("\n") == 1, printed


def test_the_version_names_the_commit_of_a_clone_alone(monkeypatch, tmp_path):
    def git(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x", "-c", "core.hooksPath=none"]
        return subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True)

    git("init")
    root = tmp_path / "clone"  # in another repository, as an environment in a clone is
    (root / "src/maejax").mkdir(parents=True)
    monkeypatch.setattr(version, "__file__", str(root / "src/maejax/version.py"))
    git("commit", "--allow-empty", "-m", "outside")
    plain = version.__version__
    assert version.name_version() == plain
    (root / ".git").mkdir()  # damaged
    assert version.name_version() == plain
    (root / ".git").rmdir()
    git("-C", "clone", "init")
    (root / "file").write_text("1")
    git("-C", "clone", "add", "file")
    git("-C", "clone", "commit", "-m", "inside")
    commit = git("-C", "clone", "rev-parse", "HEAD").stdout[:7]
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as in a hook of another repository
    assert version.name_version() == f"{plain} ({commit})"
    (root / "file").write_text("2")
    assert version.name_version() == f"{plain} ({commit}, with changes)"
    monkeypatch.setenv("PATH", "")
    assert version.name_version() == plain
