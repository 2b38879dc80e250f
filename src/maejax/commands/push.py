"""`maejax push`: an export, put on the Hugging Face hub in one commit."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from maejax.commands.command import command_line
from maejax.commands.export import ExportCommand, ForHub, licence_of
from maejax.console import plain
from maejax.errors import Failed, InputError, install
from maejax.version import __version__

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LOGIN = "run `hf auth login`, or set HF_TOKEN to a token with the right to write"


@dataclass(frozen=True)
class PushCommand(ForHub):
    """Push an export to the Hugging Face hub, in one commit: weights for transformers and timm, with a model card."""

    ckpt: str = field(metadata={"positional": "CKPT"})
    """Anything that `maejax inspect` takes; or a folder that `maejax export` wrote, which is pushed as it is."""
    name: str = field(metadata={"positional": "OWNER/NAME"})
    """The repository: it is made if it is not there; files of it that have other names stay."""
    private: bool = False
    """Let nobody else see a new repository."""

    def run(self, console: Console) -> dict[str, Any]:
        """Try token and name, make the export, and push it; raises InputError or Failed, with nothing changed there."""
        licence_of(self.licence)
        if importlib.util.find_spec("huggingface_hub") is None:
            raise InputError(f"maejax push needs huggingface_hub: {install('hub')}")
        if not NAME.fullmatch(self.name):
            raise InputError(f"{self.name} is no name on the hub: write OWNER/NAME, of letters, digits, - _ and .")
        ready = is_export(Path(self.ckpt).expanduser())
        changed = [f"--{name}" for name in ("onnx", "report", "licence", "pool") if getattr(self, name)]
        if ready and changed:
            raise InputError(f"{self.ckpt} is pushed as it is: give {changed[0]} to `maejax export`, or name the run")
        with asking(self.name):
            before = try_name(self.name, private=self.private)
        if ready:
            return self.push(Path(self.ckpt).expanduser(), before, [])
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("private", "json")}
        with TemporaryDirectory(prefix="maejax-push-") as folder:
            made = ExportCommand(**own, out=folder).run(console)
            return self.push(Path(folder), before, made["notices"])

    def push(self, folder: Path, before: str, notices: list[str]) -> dict[str, Any]:
        """Push a folder to a repository whose last commit was `before`, empty if it is not there."""
        from huggingface_hub import CommitOperationAdd

        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        added = [CommitOperationAdd(name, path) for name, path in zip(names, paths, strict=True)]
        with asking(self.name):
            hub = client()
            if not before:
                hub.create_repo(self.name, private=self.private, exist_ok=True)
            commit = hub.create_commit(self.name, added, commit_message=f"Exported by maejax {__version__}")
        facts = {"repository": f"{hub.endpoint}/{self.name}", "commit": commit.oid, "files": names}
        return facts | {"changed": commit.oid != before, "notices": notices}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print what was pushed, and on the error stream what a reader must know."""
        for notice in result["notices"]:
            plain(Console(stderr=True), f"note: {notice}")
        if result["changed"]:
            plain(console, f"{result['repository']}, commit {result['commit']}: {', '.join(result['files'])}")
        else:
            plain(console, f"{result['repository']} has these files already: nothing changed")

    def following(self, result: dict[str, Any]) -> str:
        """Return the look at what is there now."""
        return command_line("inspect", f"hf://{self.name}")


def is_export(path: Path) -> bool:
    """Recognise a folder that `maejax export` wrote."""
    from maejax.weights.containers import TIMM_FILE

    return all((path / name).is_file() for name in ("README.md", TIMM_FILE))


def client() -> Any:
    """Return the hub's own client, without progress bars and lines of its own."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    from maejax.storage.http import hub_endpoint

    disable_progress_bars()
    logging.set_verbosity_error()
    return HfApi(endpoint=hub_endpoint())


def try_name(name: str, *, private: bool) -> str:
    """Check that the account may write to a repository; returns its last commit, empty if it is not there.

    Raises InputError if it may not, or if the repository is public where a private one is wanted.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    (owner, rest), hub = name.split("/"), client()
    account = hub.whoami()
    own = [account["name"], *(each["name"] for each in account["orgs"] if each.get("roleInOrg") != "read")]
    if owner not in own:
        raise InputError(f"{name} is another's: this login may write to {', '.join(f'{one}/{rest}' for one in own)}")
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"{name}: this token may only read: {LOGIN}")
    try:
        found = hub.repo_info(name)
    except RepositoryNotFoundError:
        return ""
    hub.auth_check(name, write=True)
    if private and not found.private:
        raise InputError(f"--private: {name} is public already; leave it out, or change that in its settings")
    return found.sha


@contextmanager
def asking(name: str) -> Iterator[None]:
    """Turn errors of the hub into one sentence: InputError, or Failed where it may pass by itself."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    from maejax.storage.http import hub_endpoint

    hub = hub_endpoint()
    try:
        yield
    except InputError:
        raise
    except LocalTokenNotFoundError:
        raise InputError(f"no login for {hub}: {LOGIN}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise InputError(f"{hub} does not know this login: {LOGIN}") from None
        if status == 403:
            raise InputError(f"{name}: this login may not write there: {LOGIN}") from None
        raise Failed(f"{name}: {hub} answers HTTP {status}; no file was changed there: try again later") from None
    except ValueError as error:  # of the front matter of a card, which the hub reads before it takes anything
        raise InputError(f"{name}: {' '.join(str(error).split())}") from None
    except (HTTPError, OfflineModeIsEnabled):
        raise Failed(f"no answer from {hub}; no file was changed there: see that this machine reaches it") from None
