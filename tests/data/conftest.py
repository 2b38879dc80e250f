import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from maejax.data.batch_plan import BatchConfig
from maejax.data.pipeline import Loader
from tests.data.server import Server


def make_loader(source, transform, **arguments):
    """A loader from plain arguments: those of BatchConfig and those of Loader."""
    config = {name: arguments.pop(name) for name in list(arguments) if name in BatchConfig.__dataclass_fields__}
    return Loader(source, transform, BatchConfig(**config), **arguments)


@pytest.fixture
def encode():
    """Pixels (or a Pillow image) -> the bytes of an image file."""

    def encode(pixels, format="PNG", **options):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def write_tar():
    """{name: bytes} -> a tar at the path, which is returned."""

    def write_tar(path, members, format=tarfile.USTAR_FORMAT):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=format) as tar:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return path

    return write_tar


@pytest.fixture
def numbered(encode, write_tar):
    """A tar of n grey 6x6 images, each filled with its own number."""

    def numbered(path, n):
        images = {f"{i:04d}.png": encode(np.full((6, 6), i, np.uint8)) for i in range(n)}
        labels = {f"{i:04d}.cls": str(i % 3).encode() for i in range(n)}
        return write_tar(path, dict(sorted((images | labels).items())))

    return numbered


@pytest.fixture(scope="session")
def photo():
    """See make_photo."""
    return make_photo()


def make_photo():
    """A picture with the spectrum of a photo: strong in the large, weak in the small. uint8 [300, 400, 3]."""
    rng = np.random.default_rng(0)
    pixels = np.full((300, 400, 3), 128.0)
    for cells, strength in ((4, 90), (16, 40), (64, 15), (400, 6)):
        noise = Image.fromarray((rng.random((cells, cells, 3)) * 255).astype(np.uint8))
        pixels += (np.asarray(noise.resize((400, 300), Image.Resampling.BICUBIC)) / 127.5 - 1) * strength
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture
def server():
    """A web server that misbehaves as it is told; see tests/data/server.py."""
    server = Server()
    yield server
    server.stop()
