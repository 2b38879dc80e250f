"""The paper's models as nnx modules that are used strictly as pytrees."""
