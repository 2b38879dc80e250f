"""Names of the scores, their table on a terminal, and a sentence that compares them."""

from collections.abc import Mapping

from rich.table import Table

Scores = Mapping[str, Mapping[str, float]]  # {"pretrained": {"knn": 83.7, ..., "linear_100_std": 1.2}, ...}

MEASURES = {"knn": "kNN", "linear": "linear", "linear_100": "linear with 100 labels"}
FEATURES = {"pretrained": "pre-trained encoder", "untrained": "same encoder, untrained", "pixels": "raw pixels"}

_LEVEL = 1.0  # points; with 2,000 test images the standard error of one accuracy near 80 % is 0.9


def score_table(scores: Scores, measures: Mapping[str, str] = MEASURES) -> Table:
    """Build the table of scores for a terminal: a row for each kind of feature, a column for each measure."""
    table = Table(title="Test accuracy in percent, encoder frozen", title_justify="left")
    table.add_column("features")
    for measure in measures.values():
        table.add_column(measure, justify="right")
    for kind, row in scores.items():
        cells = [cell(row, measure) for measure in measures]
        table.add_row(FEATURES.get(kind, kind), *cells, style="bold" if kind == "pretrained" else None)
    return table


def cell(row: Mapping[str, float], measure: str) -> str:
    """Format one score to a tenth of a percent, with its standard deviation if `row` has one; a dash if absent."""
    if measure not in row:
        return "–"  # noqa: RUF001
    spread = row.get(f"{measure}_std")
    return f"{row[measure]:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def explain(scores: Scores) -> str:
    """Return a sentence that compares the pre-trained encoder with the untrained one and with raw pixels.

    `scores` are accuracies in percent, as under "scores" in report.json. A difference below one point counts as level,
    since with 2,000 test images it is within chance.
    """
    untrained, pixels = (_compare(scores["pretrained"], scores[control]) for control in ("untrained", "pixels"))
    if len(untrained["ahead of"]) <= len(untrained["behind"]):
        verdict = "Pre-training did not help here"
    elif not pixels["ahead of"]:
        pixels_do = "as well" if pixels["level with"] else "better"
        verdict = f"Pre-training taught the encoder something, but raw pixels do {pixels_do}"
    elif len(untrained["ahead of"]) + len(pixels["ahead of"]) < 2 * len(MEASURES):
        verdict = "Pre-training helped, though not on every count"
    else:
        verdict = "Pre-training helped on every count"
    first, second = _compared(untrained, "the untrained one", "it"), _compared(pixels, "raw pixels", "them")
    return f"{verdict}: in points of accuracy, the pre-trained encoder is {first}; it is {second}."


def explain_control(scores: Scores, measures: Mapping[str, str], level: float) -> str:
    """Return a sentence that compares the pre-trained encoder with the untrained one in the columns `measures`.

    A difference below `level` points counts as level.
    """
    found = _compare(scores["pretrained"], scores["untrained"], measures, level)
    if len(found["ahead of"]) == len(measures):
        verdict = "Pre-training helped on every count"
    elif len(found["ahead of"]) > len(found["behind"]):
        verdict = "Pre-training helped, though not on every count"
    else:
        verdict = "Pre-training did not help here"
    return f"{verdict}: in points of accuracy, the encoder is {_compared(found, 'the same one untrained', 'it')}."


def _compare(
    ours: Mapping[str, float],
    control: Mapping[str, float],
    measures: Mapping[str, str] = MEASURES,
    level: float = _LEVEL,
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
    for measure, name in measures.items():
        difference = round(ours[measure] - control[measure], 1)
        place = "level with" if abs(difference) < level else "ahead of" if difference > 0 else "behind"
        found[place].append(f"{name} ({difference:+.1f})")
    return found


def _compared(found: Mapping[str, list[str]], control: str, pronoun: str) -> str:
    groups = [(place, _listed(names)) for place, names in found.items() if names]
    return ", ".join(f"{place} {pronoun if k else control} in {names}" for k, (place, names) in enumerate(groups))


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
