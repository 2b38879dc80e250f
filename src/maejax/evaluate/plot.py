"""A plot of points over a logarithmic axis as a picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from maejax.evaluate.curve import number, ticks

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 24, 56
INK, GRID, LINE, BEST = (40, 40, 40), (225, 225, 225), (31, 119, 180), (214, 39, 40)


def draw_plot(points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> Image.Image:
    """Draw points (x > 0, y), joined in the order of x, the highest in red with its values; x is logarithmic.

    Points that are not finite are left out. Returns RGB, 720 x 400 pixels.
    """
    points = sorted((x, y) for x, y in points if math.isfinite(y))
    picture = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    if not points:
        draw.text((LEFT, TOP), "no finite value", INK, font)
        return picture
    low, high = math.log10(points[0][0]), math.log10(points[-1][0])
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    values = [y for _, y in points]
    y_ticks = ticks(min(values), max(values)) if max(values) > min(values) else ticks(values[0] - 1, values[0] + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low) / (high - low)
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    for tick in y_ticks:
        y = place(points[0][0], tick)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], GRID)
        draw.text((LEFT - 8, y), number(tick), INK, font, anchor="rm")
    for x, _ in points:
        draw.text((place(x, y_ticks[0])[0], HEIGHT - BOTTOM + 8), number(x), INK, font, anchor="mt")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14), x_label, INK, font, anchor="mm")
    draw.text((8, 12), y_label, INK, font, anchor="lm")
    draw.line([place(x, y) for x, y in points], LINE, 2)
    best = max(points, key=lambda point: point[1])
    for point in points:
        x, y = place(*point)
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], BEST if point == best else LINE)
    x, y = place(*best)
    side = "la" if x < WIDTH / 2 else "ra"
    draw.text(
        (x + (8 if side == "la" else -8), y + 6), f"{number(best[1])} at {number(best[0])}", BEST, font, anchor=side
    )
    return picture
