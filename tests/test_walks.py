"""docs/walks.md tells of names that the code has, and of as few forms as it promises."""

import pkgutil
import re

import pytest

from .conftest import ROOT

TEXT = (ROOT / "docs/walks.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
IMAGE, WEIGHT = "An image, from shard to loss", "A weight, from .pth to a running model"
MOST = {IMAGE: 8, WEIGHT: 6}  # forms, the bold ones


@pytest.mark.parametrize("section", SECTIONS)
def test_every_name_of_a_walk_is_in_the_code(section):
    names = re.findall(r"`([a-z_]+(?:\.\w+)+)`", SECTIONS[section])
    assert len(names) >= 8
    for name in names:
        pkgutil.resolve_name(f"maejax.{name}")  # raises if there is none


@pytest.mark.parametrize("section", MOST)
def test_a_walk_has_few_forms(section):
    forms = re.findall(r"^\d+\. \*\*(.+?)\*\*", SECTIONS[section], re.MULTILINE)
    assert len(forms) == len(re.findall(r"^\d+\. ", SECTIONS[section], re.MULTILINE)), "every step is one form"
    assert 1 < len(forms) <= MOST[section]


def test_a_weight_passes_few_files():
    assert len(set(re.findall(r"`(\w+\.\w+)\.\w+`", SECTIONS[WEIGHT]))) <= 7
