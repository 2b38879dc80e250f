"""The effective rank of features: a measure of quality that needs no labels."""

import numpy as np


def effective_rank(features: np.ndarray) -> float:
    """Compute the effective rank of features [n, D], centred: 1 to min(n - 1, D).

    More directions in use give a higher one, equal features 1. It is exp(entropy) of the singular values as shares of
    their sum (Roy & Vetterli 2007; RankMe of Garrido et al. 2023 does not centre). Raises ValueError if a feature is
    not finite.
    """
    x = np.asarray(features, np.float64).reshape(len(features), -1)
    if not np.isfinite(x).all():
        raise ValueError("features must be finite")
    x = x - x.mean(axis=0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    if values.sum() == 0:
        return 1.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
