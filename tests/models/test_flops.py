"""FLOP of a step, against the matrix products that JAX makes."""

import jax
import jax.numpy as jnp
import pytest

from maejax.models.flops import train_flop, vit_flop

LARGE = {"patches": 196, "visible": 49, "pixels": 768, "dec_dim": 512, "dec_layers": 8}


def test_known_models():
    assert train_flop(**LARGE, dim=768, layers=12) == pytest.approx(58.7e9, rel=1e-3)
    assert train_flop(**LARGE, dim=1024, layers=24) == pytest.approx(124.5e9, rel=1e-3)


def test_a_block_is_its_matrix_products():
    tokens, dim, heads = 10, 16, 2

    def products(x, q, k, qkv, proj, fc1, fc2):
        weights = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        return x @ qkv, jnp.einsum("bhqk,bkhd->bqhd", weights, k), x @ proj, (x @ fc1) @ fc2

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    part = shape(1, tokens, heads, dim // heads)
    cost = jax.jit(products).lower(
        shape(tokens, dim), part, part, shape(dim, 3 * dim), shape(dim, dim), shape(dim, 4 * dim), shape(4 * dim, dim)
    ).cost_analysis()  # fmt: skip
    assert vit_flop(tokens, dim, 1) == pytest.approx(cost["flops"], rel=1e-6)
