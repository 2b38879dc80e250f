"""A masked autoencoder whose decoder or target is code of the user."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.code import given_code
from maejax.models.description import MAE, Compute
from maejax.models.mae import MaskedAutoencoder
from maejax.models.targets import Components
from maejax.models.tokens import token
from maejax.models.vit import VisionTransformer


class CustomAutoencoder(MaskedAutoencoder):
    """A masked autoencoder with a decoder of the user's code in the place of all that `decode` does.

    It is built as `custom(config, rngs)` from the `MAE` and the random numbers of its weights, and called as
    `decoder(latent, order, key, predicted)` with the arguments of `decode`. It returns a prediction [B, M, P]; P is
    `config.values`. Raises ValueError if its code was not given, or if the prediction has another shape.
    """

    def __init__(self, config: MAE, compute: Compute, rngs: nnx.Rngs):
        nnx.Module.__init__(self)
        self.config, self.compute, self.visible = config, compute, config.visible
        self.encoder = VisionTransformer(config.encoder, compute, rngs)
        self.decoder: Any = given_code(config.decoder.custom, "decoder")(config, rngs)
        self.mask_token = token(config.encoder.dim, rngs) if config.mask_tokens == "encoder" else None
        self.components = Components(config.encoder.pixels, config.values) if config.target == "components" else None
        self.teacher = VisionTransformer(config.teacher, compute, rngs) if config.teacher else None

    def decode(self, latent: jax.Array, order: jax.Array, key=None, predicted: int | None = None) -> jax.Array:
        """Predict the last M patches of the order [B, N] by the user's decoder: [B, M, P], float32."""
        predicted = predicted or self.config.hidden
        prediction = self.decoder(latent, order, key, predicted)
        wanted = (order.shape[0], predicted, self.config.values)
        if prediction.shape != wanted:
            raise ValueError(f"a decoder returns [B, M, P], here {list(wanted)}, not {list(prediction.shape)}")
        return prediction.astype(jnp.float32)
