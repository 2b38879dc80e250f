"""Images and shards that cannot be read: counted, named once, and an error beyond a limit."""

import logging
from dataclasses import dataclass, field
from typing import Literal

from maejax.errors import InputError

OnBadData = Literal["skip", "stop"]
TOLERATED = 10  # bad images are forgiven up to this number, however few were seen

_log = logging.getLogger("maejax.data")


@dataclass
class Faults:
    """The faults of one pass over data, and how many are too many.

    With `on_bad_data` "stop" the first fault is too many. With "skip", bad images are allowed up to the share
    `max_bad_images` of all images seen (or `TOLERATED`, unless the share is 0), and so are `max_lost_shards` shards.
    `bad` and `lost` map each fault to the reason. The methods raise InputError with examples if there are too many.
    """

    on_bad_data: OnBadData = "skip"
    max_bad_images: float = 0.001
    max_lost_shards: int = 0
    seen: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    def saw(self, images: int, total: int | None) -> None:
        """Count images that were looked at; never more than there are in all, where that is known."""
        self.seen = self.seen + images if total is None else min(self.seen + images, total)

    def bad_image(self, key: str, reason: str) -> None:
        """Count an image that cannot be read."""
        if key in self.bad:
            return
        self.bad[key] = reason
        _log.warning("unreadable image %s: %s", key, reason)
        if self.on_bad_data == "stop":
            raise InputError(f"unreadable image {key}: {reason}; repair or remove it, or give --on-bad-data skip")
        if len(self.bad) > max(TOLERATED * (self.max_bad_images > 0), self.max_bad_images * self.seen):
            raise InputError(
                f"{len(self.bad)} of {self.seen} images are unreadable, more than --max-bad-images "
                f"{self.max_bad_images:g} allows: {_examples(self.bad)}; repair the data, or allow more"
            )

    def lost_shard(self, name: str, reason: str) -> None:
        """Count a shard, or the rest of one, that cannot be read."""
        if name in self.lost:
            return
        self.lost[name] = reason
        _log.warning("lost shard %s: %s", name, reason)
        if self.on_bad_data == "stop" or len(self.lost) > self.max_lost_shards:
            limit = "--on-bad-data stop" if self.on_bad_data == "stop" else f"--max-lost-shards {self.max_lost_shards}"
            raise InputError(
                f"{len(self.lost)} shard{'s' * (len(self.lost) > 1)} cannot be read to the end, more than {limit} "
                f"allows: {_examples(self.lost)}; repair the data, or allow more"
            )


def _examples(faults: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(faults.items())[-3:])
