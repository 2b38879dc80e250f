"""Code of the user in a model whose weights are read: a decoder or a target, of which files have the name alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from maejax.errors import WeightsError
from maejax.models.code import name_code
from maejax.models.description import MAE
from maejax.weights.weights import Weights


class CustomCode(NamedTuple):
    """Code of the user that a file has by name alone: what builds a decoder, and what computes a target."""

    decoder: Callable[..., Any] | None = None
    target: Callable[..., Any] | None = None

    def fill(self, weights: Weights) -> Weights:
        """Put this code in the place of its name; a decoder without its code is left out.

        Raises WeightsError if weights need no such code.
        """
        config = weights.config
        named = (config.decoder.custom, config.custom_target) if isinstance(config, MAE) else (None, None)
        for what, name, code in zip(self._fields, named, self, strict=True):
            if code is not None and name is None:
                raise WeightsError(f"{what}={name_code(code)}: the {what} of these weights is not custom: leave it out")
        if not isinstance(config, MAE):
            return weights
        if self.target is not None:
            config = replace(config, custom_target=self.target)
        if named[0] is None:
            return replace(weights, config=config)
        if self.decoder is not None:
            return replace(weights, config=replace(config, decoder=replace(config.decoder, custom=self.decoder)))
        arrays = {name: array for name, array in weights.arrays.items() if name.startswith("encoder.")}
        notice = f"its decoder, code of another program ({named[0]}), is left out; maejax.load(..., decoder=) takes it"
        return replace(weights, arrays=arrays, config=config.encoder, notices=(*weights.notices, notice))


NO_CODE = CustomCode()
