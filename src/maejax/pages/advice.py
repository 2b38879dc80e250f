"""Remarks on the curves of a run, and the commands that come next."""

import shlex

from maejax.pages.history import History

WAITS = 0.2  # of the time, from which waiting for images is worth a remark
COLLAPSED = 0.5  # of the highest effective rank


def remarks_on(history: History) -> list[str]:
    """Return sentences on what the curves of a run show and what could be done about it."""
    given, curves, found = history.config["flags"], history.curves, []
    waits = [value for _, value in history.points("train/input_wait")]
    waits = waits[-max(1, len(waits) // 4) :]
    if waits and (share := sum(waits) / len(waits)) > WAITS:
        waited = f"The devices waited for images {share:.0%} of the time"
        found.append(f"{waited}: try more --train-loader-workers, or smaller files.")
    if "val/loss" in curves and len(points := history.points("val/loss")) > 4:
        (step, least), (_, last) = curves["val/loss"].least, curves["val/loss"].last
        before = points[-1 - max(1, len(points) // 5)][1]
        if last > 1.02 * least:
            found.append(f"The validation loss was lowest at step {step:,}; the folder best has that state.")
        elif history.step >= history.stop and last < 0.98 * before:
            fell = f"The validation loss fell by {1 - last / before:.0%} in the last fifth"
            found.append(f"{fell}: a longer run (--training-steps) is likely to do better.")
    if "watch/rank" in curves and curves["watch/rank"].last[1] < COLLAPSED * curves["watch/rank"].most[1]:
        most, last = curves["watch/rank"].most, curves["watch/rank"].last
        fell = f"The effective rank of the features fell from {most[1]:.0f} to {last[1]:.0f}"
        found.append(f"{fell}: they lose detail; try a lower --learning-rate.")
    if (bad := history.last("data/bad_images")[1]) > 0:
        found.append(f"{bad:,.0f} images could not be read and were left out.")
    if not given.get("valid_dataset_shards"):
        found.append("With --valid-dataset-shards IMAGES this page also shows a validation loss and reconstructions.")
    elif not given.get("watch") and given.get("mode") == "pretrain":
        found.append("With --watch IMAGES this page also shows how good the features are.")
    return found


def next_commands(mode: str, run: str) -> list[str]:
    """Return the commands that come after a run."""
    run = shlex.quote(run)
    if mode != "pretrain":
        use = f"maejax train --mode {mode} --eval-only --pretrained-ckpt {run} --valid-dataset-shards IMAGES"
        return [use, f"maejax export {run}", f"maejax compare {run} OTHER_RUN"]
    labelled = "--train-dataset-shards LABELLED/train --valid-dataset-shards LABELLED/test"
    return [
        f"maejax reconstruct {run} PHOTO.jpg",
        f"maejax evaluate {run} {labelled} --out {run}/evaluation",
        f"maejax compare {run} OTHER_RUN",
        f"maejax export {run}",
    ]
