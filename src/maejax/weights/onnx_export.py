"""ONNX: an encoder or a classifier, written operator by operator: images in, features or logits out.

Each function adds to a graph what the module of the same name computes; a value is the name of an array there.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from maejax.errors import WeightsError
from maejax.models.classifier import POOL
from maejax.models.description import Classifier, ViT
from maejax.models.patches import rotary_angles
from maejax.models.pooling import Pool
from maejax.models.stack import Stack
from maejax.version import __version__
from maejax.weights.weights import Weights, fold_head_norm, unstack

OPSET = 20  # the first with GELU: onnxruntime 1.17 of 2024
LARGEST = 2**31 - 2**24  # bytes of arrays in one file: protobuf ends at 2 GB
ENCODER = "encoder."


class Graph:
    """The nodes of a graph, and its arrays by name, those of the weights and constants."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self.weights, self.nodes, self.arrays = weights, [], {}
        self._constants: dict[Any, str] = {}

    def op(self, kind: str, *inputs: Any, parts: int = 0, **attributes: Any) -> Any:
        """Add a node and return its output, or those of its `parts`; inputs that are no names are constants."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        outputs = [f"{name}.{i}" for i in range(parts)] or [name]
        given = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, given, outputs, name, **attributes))
        return outputs if parts else name

    def constant(self, value: Any) -> str:
        """Add a constant, float32 or whole numbers in int64, and return its name; equal ones are one."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        name = self._constants.setdefault((array.dtype, array.shape, array.tobytes()), f"constant_{len(self.arrays)}")
        self.arrays[name] = array
        return name

    def weight(self, name: str) -> str:
        """Add an array of the weights and return its name."""
        self.arrays[name] = self.weights[name]
        return name

    def linear(self, x: str, name: str) -> str:
        """Multiply by the kernel of a layer and add its bias, if it has one."""
        x = self.op("MatMul", x, self.weight(f"{name}.kernel"))
        return self.op("Add", x, self.weight(f"{name}.bias")) if f"{name}.bias" in self.weights else x

    def layer_norm(self, x: str, name: str, eps: float) -> str:
        """Normalise the last axis, if there is such a norm."""
        if f"{name}.scale" not in self.weights:
            return x
        scale, bias = self.weight(f"{name}.scale"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps)


def model_proto(weights: Weights, pool: Pool | None, *, logits: bool) -> onnx.ModelProto:
    """Build images [B, H, W, C] of the model's type -> float32 "features" as of `VisionTransformer.encode`, for any B.

    With `logits`, of a classifier, "logits" [B, labels]. A decoder is left out. Raises WeightsError, with its name, for
    an array of the encoder that has no form here.
    """
    arrays, config = dict(weights.arrays), weights.config
    if isinstance(config, Classifier):
        arrays, config = fold_head_norm(arrays, config)
    encoder = config.encoder
    split = unstack(arrays).items()
    graph = Graph({name if i is None else name.replace("blocks.", f"blocks.{i}."): array for (name, i), array in split})
    tokens = transform(graph, embed(graph, normalized(graph, "images", encoder), encoder), encoder)
    tokens = graph.layer_norm(tokens, ENCODER + "norm", encoder.norm_eps)
    if logits and isinstance(config, Classifier):
        pooled_tokens = pooled(graph, tokens, POOL[config.pooling], encoder)
        graph.linear(graph.layer_norm(pooled_tokens, "norm", encoder.norm_eps), "head")
        shape: list[Any] = ["B", config.labels]
    else:
        pooled(graph, tokens, pool, encoder)
        shape = ["B", encoder.dim * (1 + (pool == "cls+mean"))]
        shape[1:1] = [] if pool else [encoder.prefix + encoder.patches]
    used = graph.arrays.keys() | {name for name in graph.weights if name.startswith(ENCODER + "attention_pool.")}
    if left := sorted(name for name in graph.weights if name.startswith(ENCODER) and name not in used | POSITIONED):
        raise WeightsError(f"--to onnx: {left[0]} has no form there; give --to stablehlo")
    return finished(graph, "logits" if logits else "features", shape, weights)


POSITIONED = {ENCODER + name for name in ("cls_token", "registers", "positions")}  # joined in one constant


def finished(graph: Graph, output: str, shape: Sequence[Any], weights: Weights) -> onnx.ModelProto:
    """Return a graph as a model whose last node gives the output; facts that no array tells are its metadata."""
    encoder = weights.config.encoder
    graph.nodes[-1].output[0] = output
    taken = helper.np_dtype_to_tensor_dtype(np.dtype(encoder.image_type))
    ends = (
        [helper.make_tensor_value_info("images", taken, ["B", *encoder.image_size, encoder.channels])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
    )
    arrays = [numpy_helper.from_array(np.array(array, order="C"), name) for name, array in graph.arrays.items()]
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "maejax", *ends, arrays),
        opset_imports=opset,
        ir_version=helper.find_min_ir_version_for(opset),
        producer_name="maejax",
        producer_version=__version__,
    )
    facts = {"bands": encoder.bands, "classes": weights.classes, "crop_ratio": weights.crop_ratio}
    helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items() if value})
    return model


def save(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Write a model, in two files where one cannot hold it, and return them, the model's last."""
    if sum(len(array.raw_data) for array in model.graph.initializer) <= LARGEST:
        onnx.save_model(model, path)
        return [path]
    beside = path.with_name(f"{path.name}.data")
    onnx.save_model(model, path, save_as_external_data=True, location=beside.name)
    return [beside, path]


def normalized(graph: Graph, images: str, encoder: ViT) -> str:
    """Scale images [B, H, W, C] by mean and deviation; missing pixels become 0."""
    values = graph.op("Cast", images, to=TensorProto.FLOAT)
    x = graph.op("Div", values, 255.0) if encoder.image_type == "uint8" else values
    x = graph.op("Div", graph.op("Sub", x, np.asarray(encoder.mean, np.float32)), np.asarray(encoder.std, np.float32))
    gone = [graph.op("IsNaN", values)] if encoder.may_miss else []
    if encoder.no_data is not None:
        gone.append(graph.op("Equal", values, np.float32(encoder.no_data)))
    for missing in gone:
        x = graph.op("Where", missing, 0.0, x)
    return x


def embed(graph: Graph, images: str, encoder: ViT) -> str:
    """Embed the patches of images, put cls and registers before them, and add positions: [B, T, D]."""
    (rows, columns), side, channels = encoder.grid, encoder.patch_size, encoder.channels
    tiles = graph.op("Reshape", images, [-1, rows, side, columns, side, channels])
    patches = graph.op("Transpose", tiles, perm=[0, 1, 3, 2, 4, 5])
    patches = graph.op("Reshape", patches, [-1, encoder.patches, encoder.pixels])
    tokens = graph.linear(patches, ENCODER + "embed")
    blank = np.zeros((1, encoder.patches, encoder.dim), np.float32)
    positions = graph.weights.get(ENCODER + "positions", blank)
    first = [graph.weights[name] for name in (ENCODER + "cls_token", ENCODER + "registers") if name in graph.weights]
    if encoder.cls_position:
        first[0], positions = first[0] + positions[:, :1], positions[:, 1:]
    if encoder.prefix:
        tokens = graph.op("Pad", tokens, [0, encoder.prefix, 0, 0, 0, 0])
    if first or ENCODER + "positions" in graph.weights:
        tokens = graph.op("Add", tokens, np.concatenate([*first, positions], axis=1))
    return graph.layer_norm(tokens, ENCODER + "pre_norm", encoder.norm_eps)


def transform(graph: Graph, x: str, encoder: ViT) -> str:
    """Run tokens [B, T, D] through the blocks."""
    turns = []
    if encoder.posemb == "rotary":
        angles = np.pad(rotary_angles(encoder.grid, encoder.dim // encoder.heads), ((encoder.prefix, 0), (0, 0)))
        turns = [graph.constant(wave(angles)[None, :, None]) for wave in (np.cos, np.sin)]

    def add(x: str, branch: str, scale: str) -> str:
        scaled = graph.op("Mul", branch, graph.weight(scale)) if scale in graph.weights else branch
        return graph.op("Add", x, scaled)

    for i in range(encoder.layers):
        block = f"{ENCODER}transformer.blocks.{i}."
        inner = graph.layer_norm(x, block + "norm1", encoder.norm_eps)
        parts = graph.op("Split", graph.linear(inner, block + "attention.qkv"), parts=3, axis=2, num_outputs=3)
        q, k, v = (by_head(graph, part, encoder) for part in parts)
        q, k = (
            turn(graph, graph.layer_norm(part, f"{block}attention.{name}", encoder.norm_eps), turns)
            for part, name in ((q, "q_norm"), (k, "k_norm"))
        )
        x = add(x, graph.linear(attend(graph, q, k, v, encoder), block + "attention.proj"), block + "scale1")
        inner = graph.layer_norm(x, block + "norm2", encoder.norm_eps)
        x = add(x, mlp(graph, inner, block, encoder), block + "scale2")
    return x


def by_head(graph: Graph, x: str, stack: Stack) -> str:
    """Split the width of tokens [B, T, D] into heads: [B, T, heads, D / heads]."""
    return graph.op("Reshape", x, [0, 0, stack.heads, -1])


def turn(graph: Graph, x: str, turns: Sequence[str]) -> str:
    """Turn queries or keys [B, T, heads, D / heads] by cosines and sines, if there are any."""
    if not turns:
        return x
    first, second = graph.op("Split", x, parts=2, axis=3, num_outputs=2)
    turned = graph.op("Concat", graph.op("Neg", second), first, axis=3)
    return graph.op("Add", graph.op("Mul", x, turns[0]), graph.op("Mul", turned, turns[1]))


def attend(graph: Graph, q: str, k: str, v: str, stack: Stack) -> str:
    """Attend with separate heads [B, T, heads, D / heads]: [B, T, D]."""
    q = graph.op("Transpose", graph.op("Mul", q, (stack.dim // stack.heads) ** -0.5), perm=[0, 2, 1, 3])
    k, v = graph.op("Transpose", k, perm=[0, 2, 3, 1]), graph.op("Transpose", v, perm=[0, 2, 1, 3])
    attended = graph.op("MatMul", graph.op("Softmax", graph.op("MatMul", q, k), axis=-1), v)
    return graph.op("Reshape", graph.op("Transpose", attended, perm=[0, 2, 1, 3]), [0, 0, stack.dim])


def mlp(graph: Graph, x: str, name: str, stack: Stack) -> str:
    """Map tokens by two linear layers with an activation between them."""
    hidden = graph.linear(x, name + "fc1")
    if stack.gated:
        gate, value = graph.op("Split", hidden, parts=2, axis=2, num_outputs=2)
        hidden = graph.op("Mul", graph.op("Mul", gate, graph.op("Sigmoid", gate)), value)
    elif stack.gelu == "quick":
        hidden = graph.op("Mul", hidden, graph.op("Sigmoid", graph.op("Mul", hidden, 1.702)))
    else:
        hidden = graph.op("Gelu", hidden, approximate="tanh" if stack.gelu == "tanh" else "none")
    return graph.linear(hidden, name + "fc2")


def pooled(graph: Graph, tokens: str, pool: Pool | None, encoder: ViT) -> str:
    """Reduce tokens [B, T, D] as `models.pooling.pooled` does, or by the learned pooling."""
    if pool is None:
        return graph.op("Identity", tokens)
    if pool == "cls+mean":
        parts = [pooled(graph, tokens, part, encoder) for part in ("cls", "mean")]
        return graph.op("Concat", *parts, axis=1)
    if pool == "cls":
        return graph.op("Gather", tokens, 0, axis=1)
    if pool == "mean":
        patches = graph.op("Slice", tokens, [encoder.prefix], [encoder.prefix + encoder.patches], [1])
        return graph.op("ReduceMean", patches, [1], keepdims=0)
    name = ENCODER + "attention_pool."
    query = graph.linear(graph.weight(name + "query_token"), name + "q")
    k, v = graph.op("Split", graph.linear(tokens, name + "kv"), parts=2, axis=2, num_outputs=2)
    q, k, v = (by_head(graph, part, encoder) for part in (query, k, v))
    x = graph.linear(attend(graph, q, k, v, encoder), name + "proj")
    x = graph.op("Add", x, mlp(graph, graph.layer_norm(x, name + "norm", encoder.norm_eps), name, encoder))
    return graph.op("Gather", x, 0, axis=1)
