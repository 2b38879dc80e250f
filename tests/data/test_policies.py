"""timm's policies in the loader: its own code on the generators of each image, in any thread."""

import importlib.util
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from maejax.data import policies
from maejax.data.augment import build_train
from maejax.data.policies import apply_policy, augmented_by, check_policy
from maejax.data.sources import open_source
from maejax.errors import InputError
from tests.data.conftest import make_loader

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
NAMES = ["rand-m9-mstd0.5-inc1", "rand-m7-n3-t3aw", "augmix-m5-w4-d2", "augmix-m3-b1", "original-mstd0.5", "v0", "3a"]


@pytest.fixture(scope="module")
def small(photo):
    return np.asarray(Image.fromarray(photo).resize((80, 64), Image.Resampling.BICUBIC))


@needs_timm
@pytest.mark.parametrize("policy", NAMES)
def test_pictures_are_those_of_timm_itself(golden, photo, policy):
    g = golden("policies")
    picture = Image.fromarray(photo).resize((64, 48))
    distances = []
    for seed in range(200):
        generators = random.Random(seed), np.random.RandomState(seed)
        augmented = augmented_by(picture, policy, (124, 116, 104), *generators)
        distances.append(np.abs(np.asarray(augmented, float) - np.asarray(picture, float)).mean())
    # Of 256: releases of Pillow may round a bicubic value otherwise.
    np.testing.assert_allclose(distances, g[policy], atol=0.05)
    # Drawn by our generators the same policy changes pictures as strongly: five standard errors.
    pixels = np.asarray(picture)
    ours = [
        np.abs(apply_policy(pixels, policy, np.random.default_rng(i)).astype(float) - pixels).mean() for i in range(200)
    ]
    assert abs(np.mean(ours) - np.mean(distances)) < 5 * np.std(distances) * np.sqrt(2 / 200)
    assert abs(np.std(ours) / np.std(distances) - 1) < 0.3


@needs_timm
def test_threads_do_not_disturb_each_other_or_the_global_generators(small):
    random.seed(1)
    state = random.getstate()

    def augmented(seed):
        return apply_policy(small, NAMES[seed % len(NAMES)], np.random.default_rng(seed))

    with ThreadPoolExecutor(8) as executor:
        together = list(executor.map(augmented, range(300)))
    for seed, image in enumerate(together):
        np.testing.assert_array_equal(image, augmented(seed), err_msg=str(seed))
    assert random.getstate() == state
    assert len({image.tobytes() for image in together[:: len(NAMES)]}) > 30  # a fifth of rand leaves all as it was


@needs_timm
def test_the_loader_gives_the_same_pictures_on_any_workers(tmp_path, encode, write_tar, small, monkeypatch):
    images = {f"{i}.png": encode(np.roll(small, 5 * i, axis=1)) for i in range(8)}
    source = open_source(str(write_tar(tmp_path / "a.tar", images)))
    transform = build_train((48, 48), "rrc", (0.5, 1.0), 0.2, policy="rand-m9-mstd0.5-inc1")
    assert repr(pickle.loads(pickle.dumps(transform))) == repr(transform)

    def batches(cores):
        loader = make_loader(source, transform, batch_size=8, channels=3, size=(48, 48), seed=4, workers=cores)
        return [batch.images.copy() for batch in loader.iterate(0, 3)]

    first = batches(0)
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, batches(3))
    monkeypatch.setattr("maejax.data.pipeline.loader_processes", lambda *_: 2)
    np.testing.assert_array_equal(first, batches(2))


@needs_timm
def test_grey_images_stay_grey(small):
    grey = small[..., :1]
    assert any(not np.array_equal(grey, apply_policy(grey, "v0", np.random.default_rng(i))) for i in range(5))
    assert apply_policy(grey, "v0", np.random.default_rng(0), (0.5,)).shape == grey.shape


@needs_timm
@pytest.mark.parametrize("policy", ["rend-m9", "rand-m9-mstd", "rand-tfoo", "rand-q3", "originals", "v0-m9", ""])
def test_what_timm_would_pass_over_is_refused(policy):
    with pytest.raises(InputError, match=r"no policy of timm's; it is none, a name such as rand-m9"):
        check_policy(policy)


@needs_timm
def test_what_timm_knows_is_taken():
    for policy in [*NAMES, "rand-m9-mstdinf-p0.7", "rand-m15-mmax20-tweights-n1", "originalr", "v0r"]:
        check_policy(policy)
    with pytest.raises(InputError, match="1 or 3 channels, not 4"):
        check_policy("v0", 4)


@needs_timm
def test_torch_is_never_loaded():
    code = "import sys; from maejax.data.policies import check_policy as c; c('v0'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_timm_is_said_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    policies._load.cache_clear()
    policies._transform.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'maejax\[timm\]'"):
        check_policy("rand-m9-mstd0.5-inc1")
    policies._load.cache_clear()
