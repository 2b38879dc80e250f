"""`maejax serve`: a page in the browser on which to play with a model."""

import webbrowser
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rich.console import Console

from maejax.commands.command import prepare_devices
from maejax.commands.inspect import Unstated
from maejax.console import plain
from maejax.errors import Failed, FetchError, InputError, install
from maejax.pixels import Pixels
from maejax.storage.redact import redact


@dataclass(frozen=True)
class ServeCommand(Unstated, Pixels):
    """Open a page to play with a model: hide patches, see them filled, see attention and the nearest pictures.

    Only this machine reaches the page. Ctrl-C ends it. Pictures that are dropped on the page are kept nowhere.
    """

    ckpt: str = field(metadata={"positional": "CKPT"})
    """Run directory or checkpoint, or anything else that `maejax inspect` takes. A run has a slider over its
    checkpoints."""
    images: str = ""
    """Pictures to choose from and to compare with: anything that --train-dataset-shards takes. Empty: the run's
    validation images, or those of training if it holds some of these out, if they are on this machine."""
    pictures: int = 1000
    """Number of these that are used at most, spread over all of them."""
    host: str = "127.0.0.1"
    """Address of this machine to answer at. 0.0.0.0 lets everyone in who reaches this machine."""
    port: int = 6230
    """Port to answer at; 0: any that is free."""
    browser: bool = False
    """Open the page in this machine's browser too."""
    show_bands: str = ""
    """Three bands for red, green and blue, or one. Empty: the first three of 3 or 4, else the first."""

    def run(self, console: Console) -> dict[str, Any]:
        """Serve the page until Ctrl-C; raises InputError before that for whatever cannot be served."""
        try:
            from maejax.playground.server import build_app, is_loopback, listen, run
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("maejax"):
                raise
            raise InputError(f"the playground needs {error.name}: {install('serve')}") from None
        if self.pictures < 1:
            raise InputError(f"--pictures {self.pictures}: give at least 1")
        with listen(self.host, self.port) as opened:
            prepare_devices()
            playground, notes = self.open(console)
            place = f"[{self.host}]" if ":" in self.host else self.host
            address = f"http://{place}:{opened.getsockname()[1]}"
            for note in notes:
                plain(console, f"note: {note}")
            if not is_loopback(self.host):
                whom = "this machine" if self.host in ("0.0.0.0", "::") else self.host
                plain(console, f"note: everyone who reaches {whom} over the network can use it, without a password")
            app = build_app(playground, self.host)
            plain(console, f"playground {address}   (Ctrl-C ends it)")
            if self.browser:
                webbrowser.open(address)
            run(app, opened)
        return {"address": address}

    def open(self, console: Console) -> tuple[Any, list[str]]:
        """Read the model and the pictures; returns them as a `Playground`, and sentences that a user must know."""
        from maejax.data.augment import build_eval
        from maejax.data.display import shown_bands
        from maejax.data.form import form_for
        from maejax.playground.gallery import empty_gallery, read_gallery
        from maejax.playground.playground import Playground
        from maejax.playground.run_steps import RunSteps
        from maejax.training.rundir import read_config
        from maejax.weights import run_directory
        from maejax.weights.addresses import local

        weights, fetched = self.read(self.ckpt)
        from maejax.weights.weights import model_of

        model, notes, flags, checkpoint = model_of(weights), [*weights.notices], {}, None
        if fetched:
            plain(console, fetched)
        here = local(self.ckpt)[0]
        if weights.layout == "maejax" and here.is_dir():
            run, checkpoint = run_directory.locate(here)
            flags = (read_config(run) or {}).get("flags", {})
        # How a run read its images holds for its pictures here too, unless a flag says otherwise.
        same = {each.name: getattr(self, each.name) for each in fields(Pixels)}
        same |= {e.name: flags[e.name] for e in fields(Pixels) if e.name in flags and same[e.name] == e.default}
        encoder = model.encoder.config
        form = form_for(encoder, replace(Pixels(), **same))
        crop = build_eval(encoder.image_size, 1.0, form.no_data)
        show = shown_bands(self.show_bands, encoder.bands, encoder.channels)
        spec = self.images or flags.get("valid_dataset_shards") or flags.get("train_dataset_shards") or ""
        steps, gallery = RunSteps(model, checkpoint, raw=self.raw), empty_gallery(encoder)
        if spec and (self.images or "://" not in spec):
            plain(console, f"reading pictures of {redact(spec)}")
            try:
                gallery = read_gallery(spec, form, encoder, crop, self.pictures)
            except (InputError, FetchError, Failed, OSError) as error:
                if self.images:
                    raise
                notes.append(f"the run's images cannot be read: {error}")
        if not len(gallery.images):
            why = f"the run's images are at {redact(spec)}" if "://" in spec else "no pictures are known"
            notes.append(f"{why}: give --images to choose from some, and to find nearest ones")
        playground = Playground(steps, gallery, form, crop, show)
        playground.title = redact(self.ckpt)
        return playground, notes

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print that the page is closed."""
        plain(console, f"closed {result['address']}")
