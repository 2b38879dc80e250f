"""Names of slices as gcloud spells them, and what the compiler calls them."""

import pytest

from maejax.plan import target
from maejax.plan.target import find_target, read_name


@pytest.mark.parametrize(
    ("name", "described", "options"),
    [
        ("v3-8", "v3:2x2", {}),  # 8 cores on 4 chips
        ("v4-8", "v4:2x2x1", {"chip_config_name": "megacore"}),
        ("v4-64", "v4:2x4x4", {"chip_config_name": "megacore"}),
        ("v4-512", "v4:4x8x8", {"chip_config_name": "megacore"}),
        ("v5litepod-1", "v5e:1x1", {"chips_per_host_bounds": (1, 1, 1)}),
        ("v5litepod-8", "v5e:2x4", {"chips_per_host_bounds": (2, 4, 1)}),  # one host of eight
        ("v5litepod-16", "v5e:4x4", {}),  # four of four
        ("v5p-32", "v5p:2x2x4", {"chip_config_name": "megacore"}),
        ("v6e-256", "v6e:16x16", {}),
    ],
)
def test_names_count_what_gcloud_counts(name, described, options):
    assert read_name(name)[1:] == (described, options)


@pytest.mark.parametrize(
    ("name", "sentence"), [("v9-8", "v9-8 is no TPU slice"), ("v4-12", "slices of v4 are of 8, 1")]
)
def test_other_names_are_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_target(name)


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'maejax\[tpu\]'"):
        find_target("v4-8")
