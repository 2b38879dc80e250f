"""What a release is made of: its metadata, its workflow, the files of its image; `make release` builds and runs it."""

import re
import tomllib

import yaml

from .conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_has_one_source():
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"] == {"path": "src/maejax/version.py"}
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "version" not in cited and cited["license"] == PROJECT["project"]["license"]
    (author,) = cited["authors"]
    assert author.keys() == {"name"} and author["name"] in (ROOT / "NOTICE").read_text()


def test_actions_are_pinned_and_only_a_tag_publishes():
    text = (ROOT / ".github/workflows/release.yml").read_text()
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert len(used) == text.count("uses:")
    for action, comment in used:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) and re.fullmatch(r" # v[\d.]+", comment), action
    workflow = yaml.safe_load(text)
    assert "secrets" not in text and workflow["permissions"] == {"contents": "read"}
    publish = workflow["jobs"].pop("publish")
    assert publish["if"] == "github.ref_type == 'tag'" and set(publish["needs"]) == workflow["jobs"].keys()
    assert not any("permissions" in job for job in workflow["jobs"].values())
    pythons = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == pythons
    assert all((ROOT / f"constraints/python{each}.txt").exists() for each in pythons)


def test_issue_forms_have_what_the_forge_wants():
    forms = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")]
    assert {form["name"] for form in forms} == {"Bug", "Idea"}
    for form in forms:
        ids = [each["id"] for each in form["body"]]
        assert form["description"] and len(ids) == len(set(ids))
        assert all(each["attributes"]["label"] for each in form["body"])


def test_the_image_gets_all_that_the_build_reads():
    lines = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    copied = {name for line in lines for name in line.split()}
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    needed |= PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["sources"].keys()
    assert needed <= copied and all((ROOT / name).exists() for name in copied)
