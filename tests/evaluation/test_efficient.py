"""Efficient probing: equal to the authors' code, and pictures of its attention."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from maejax.evaluation.attention_map import AttentionMaps, write_attention
from maejax.evaluation.attentive import Recipe
from maejax.evaluation.efficient import attend, efficient_probe, normalise, pool
from maejax.models.description import ViT

from ..bounds import assert_close


def test_pooling_and_gradients_equal_the_authors(golden):
    g = golden("efficient_probe")
    tokens, queries, values = jnp.asarray(g["tokens"]), jnp.asarray(g["queries"][0]), jnp.asarray(g["values"].T)
    # Any weights will do that differ between images: those of the file are the sines of 0, 1, 2 ...
    loss_weights = np.sin(np.arange(g["pooled"].size)).reshape(g["pooled"].shape)

    def normalised(queries, values):
        x = pool(queries, values, tokens)
        return normalise(x, x.mean(axis=0, keepdims=True), x.var(axis=0, keepdims=True))

    assert_close(pool(queries, values, tokens), g["pooled"])
    assert_close(normalised(queries, values), g["normalised"])
    both = jax.grad(lambda *weights: (normalised(*weights) * loss_weights).sum(), (0, 1))(queries, values)
    assert_close(both, (g["grad_queries"][0], g["grad_values"].T))


def test_the_probe_finds_what_one_token_says_and_the_mean_hides():
    rng = np.random.default_rng(0)
    n, dim = 400, 20  # 8 queries do not divide 20: 5 do
    x = rng.normal(size=(n, 9, dim)).astype(np.float32)
    y, place = rng.integers(0, 2, n), rng.integers(0, 9, n)
    for i in range(n):  # the first channel marks the token, the sign of the next says the class
        x[i, place[i], :2] = 8, 8 * (2 * y[i] - 1)
    x -= x.mean(axis=1, keepdims=True)  # nothing is left in the mean
    x += 3  # which the running mean has to take away
    recipe = Recipe(rate=3e-2, batch=64, epochs=30, least_steps=1)
    found, queries = efficient_probe(x[:300], y[:300] * 7, x[300:], y[300:] * 7, recipe=recipe)
    assert found > 95 and queries.shape == (5, dim), found
    few, _ = efficient_probe(x[:140], y[:140], x[300:], y[300:], recipe=recipe._replace(epochs=1, least_steps=120))
    assert few > 90, f"a small set gets few updates: {few}"


def test_pictures_colour_where_queries_look(tmp_path):
    tokens = np.zeros((2, 9, 20), np.float32)
    tokens[[0, 1], [5, 1], 0] = 8  # the first channel marks the patch that the first query looks for
    maps = np.asarray(attend(np.eye(8, 20, dtype=np.float32) * 5, tokens))
    assert_close(maps.sum(axis=-1), np.ones((2, 8)))
    assert maps[:, 0].argmax(axis=1).tolist() == [5, 1]

    config = ViT(image_size=(48, 48), patch_size=16, layers=1, dim=20, heads=2)
    images = np.full((2, 48, 48, 3), 100, np.uint8)
    write_attention(tmp_path / "maps.png", AttentionMaps(images, maps), config)
    sheet = np.asarray(Image.open(tmp_path / "maps.png")).astype(int)
    factor, left, top = 3, 20, 42
    side = 48 * factor
    assert sheet.shape[1] == 40 + 6 * side + 5 * 8
    assert (sheet[top : top + side, left : left + side] == 100).all()
    mean = sheet[top : top + side, left + side + 8 :][:, :side].reshape(3, side // 3, 3, side // 3, 3)
    redness = (mean[..., 0] - mean[..., 2])[:, side // 6, :, side // 6]
    assert redness.argmax() == maps[0].mean(axis=0).argmax() and redness.max() > 150


def test_a_probe_depends_on_its_seed_alone():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5, 8)).astype(np.float16), np.arange(40) % 3
    first, again, other = (efficient_probe(x, y, x, y, s, Recipe(1e-2, 16, 1, 1))[1] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
