"""The learning rate as a function of the step."""

import jax.numpy as jnp
import optax

IMAGES_PER_RATE = 256  # rates are given per 256 images: peak = base * batch / 256 (Goyal et al. 2017; paper, A.1)


def peak_rate(base_rate: float, batch_size: int) -> float:
    """Scale a base learning rate, given per 256 images, to a global batch size."""
    return base_rate * batch_size / IMAGES_PER_RATE


def warmup_cosine(peak: float, warmup_steps: int, training_steps: int, floor: float = 0.0) -> optax.Schedule:
    """Rise linearly from 0 to `peak` over the warm-up, then fall to `floor` along half a cosine (paper, Table 8)."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, max(training_steps, warmup_steps + 1), floor)


def warmup_stable(peak: float, warmup_steps: int) -> optax.Schedule:
    """Rise linearly from 0 to `peak` over the warm-up, then stay there."""
    rise = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    return optax.join_schedules([rise, optax.constant_schedule(peak)], [warmup_steps])


def warmup_stable_decay(
    peak: float, warmup_steps: int, training_steps: int, cooldown_steps: int, floor: float = 0.0
) -> optax.Schedule:
    """Rise and stay as `warmup_stable`, then fall to `floor` over the last `cooldown_steps`, at least 1.

    It falls as 1 - sqrt(share of the cool-down), the best form in Haegele et al. 2024, section 3.
    """

    def fall(step):
        return peak - (peak - floor) * jnp.sqrt(jnp.clip(step / cooldown_steps, 0, 1))

    return optax.join_schedules([warmup_stable(peak, warmup_steps), fall], [training_steps - cooldown_steps])
