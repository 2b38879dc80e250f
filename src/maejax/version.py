"""The version of the package: its one source, which the build reads too."""

import os
import subprocess
from pathlib import Path

__version__ = "0.1.0"


def name_version() -> str:
    """Return the version; in a clone with git, the commit too: `0.1.0 (6a64c61, with changes)`."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return __version__
    # The variables of a hook may name another repository, and so may a parent. The index is not locked.
    places = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    places["GIT_CEILING_DIRECTORIES"] = str(root.parent)
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=2, env=places)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    commit, _, changes = found.stdout.strip().partition("-")
    return f"{__version__} ({commit}{', with changes' * bool(changes)})" if commit else __version__
