"""Names of the scores, their table on a terminal, and a sentence that compares them."""

from collections.abc import Mapping

from rich.table import Table

Scores = Mapping[str, Mapping[str, float]]  # {"pretrained": {"knn": 83.7, ..., "linear_100_std": 1.2}, ...}

MEASURES = {"knn": "kNN", "linear": "linear", "linear_100": "linear with 100 labels"}
FEATURES = {"pretrained": "pre-trained encoder", "untrained": "same encoder, untrained", "pixels": "raw pixels"}

_BEST = FEATURES["pretrained"]
ACROSS = 4  # measures that fit side by side on a page and a terminal
_LEVEL = 1.0  # points; with 2,000 test images the standard error of one accuracy near 80 % is 0.9


def score_table(scores: Scores, measures: Mapping[str, str] = MEASURES) -> Table:
    """Build the table of scores for a terminal, laid out by `grid`."""
    head, rows = grid(scores, measures)
    table, bold = Table(title="Test accuracy in percent, encoder frozen", title_justify="left"), {_BEST: "bold"}
    for i, title in enumerate(head):
        table.add_column(title, justify="right" if i else "left", style=bold.get(title))
    for row in rows:
        table.add_row(*row, style=bold.get(row[0]))
    return table


def grid(scores: Scores, measures: Mapping[str, str] = MEASURES) -> tuple[list[str], list[list[str]]]:
    """Lay scores out as titles and rows of text: a row for each kind of feature, or, if many, each measure."""
    lines = [["features", *measures.values()]]
    lines += [[FEATURES.get(kind, kind), *(cell(row, measure) for measure in measures)] for kind, row in scores.items()]
    if len(measures) > ACROSS:
        lines = [list(column) for column in zip(*lines, strict=True)]
        lines[0][0] = "protocol"
    return lines[0], lines[1:]


def cell(row: Mapping[str, float], measure: str) -> str:
    """Format one score to a tenth of a percent, with its standard deviation if `row` has one; a dash if absent."""
    if measure not in row:
        return "–"  # noqa: RUF001
    spread = row.get(f"{measure}_std")
    return f"{row[measure]:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def explain(scores: Scores, measures: Mapping[str, str] = MEASURES, level: float = _LEVEL) -> str:
    """Return a sentence that compares the pre-trained encoder with the untrained one and, if scored, with raw pixels.

    `scores` are accuracies in percent; differences in `measures` below `level` points count as level.
    """
    untrained = _compare(scores, "untrained", measures, level)
    ahead, compared = len(untrained["ahead of"]), _compared(untrained, "the untrained one", "it")
    pixels = _compare(scores, "pixels", measures, level) if "pixels" in scores else None
    if pixels is not None:
        compared += f"; it is {_compared(pixels, 'raw pixels', 'them')}"
    if ahead <= len(untrained["behind"]):
        verdict = "did not help here"
    elif pixels is not None and not pixels["ahead of"]:
        verdict = f"taught the encoder something, but raw pixels do {'as well' if pixels['level with'] else 'better'}"
    elif ahead < len(measures) or (pixels is not None and len(pixels["ahead of"]) < len(measures)):
        verdict = "helped, though not on every count"
    else:
        verdict = "helped on every count"
    return f"Pre-training {verdict}: in points of accuracy, the pre-trained encoder is {compared}."


def _compare(scores: Scores, control: str, measures: Mapping[str, str], level: float) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
    for measure, name in measures.items():
        difference = round(scores["pretrained"][measure] - scores[control][measure], 1)
        place = "level with" if abs(difference) < level else "ahead of" if difference > 0 else "behind"
        found[place].append(f"{name} ({difference:+.1f})")
    return found


def _compared(found: Mapping[str, list[str]], control: str, pronoun: str) -> str:
    groups = []
    for place, names in found.items():
        if names:
            listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
            groups.append(f"{place} {pronoun if groups else control} in {listed}")
    return ", ".join(groups)
