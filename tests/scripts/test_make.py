"""`make` without a Python that will do."""

import subprocess

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("version", ["3.10.12", "3.14.0"])
def test_the_versions_that_are_needed_are_named(tmp_path, version):
    python = tmp_path / "python"
    major, minor, _ = version.split(".")
    python.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && echo Python {version} && exit\n"
        f'[ $1 = -c ] && exec python3 -c "import sys; sys.version_info = ({major}, {minor}); $2"\nexit 1\n'
    )
    python.chmod(0o755)
    made = subprocess.run(
        ["make", "-C", ROOT, f"PYTHON={python}", f"VENV={tmp_path}/venv", "demo"], capture_output=True, text=True
    )
    assert made.returncode == 2 and not (tmp_path / "venv").exists()
    assert f"needs Python 3.11, 3.12 or 3.13, and {python} is Python {version};" in made.stderr
