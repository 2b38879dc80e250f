"""Pictures of several kinds beside one another, a row for each image."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def draw_sheet(
    columns: Mapping[str, np.ndarray], note: str = "", captions: Sequence[str] = (), least: int = 128
) -> Image.Image:
    """Draw an RGB picture with a titled column for each kind and a row for each image, above a `note`.

    `columns` are uint8 [B, H, W, C]. Sides below `least` pixels are enlarged by a whole factor without smoothing. Three
    channels are drawn as colours, otherwise the first as grey. `captions` stand under the rows; raises ValueError if
    they are not one for each image.
    """
    count, height, width, _ = next(iter(columns.values())).shape
    if captions and len(captions) != count:
        raise ValueError(f"{len(captions)} captions for {count} images")
    factor = max(1, -(-least // min(height, width)))
    height, width = height * factor, width * factor

    margin, gap, unit = 20, 8, 14
    font, small = ImageFont.load_default(size=unit), ImageFont.load_default(size=unit - 2)
    pitch = height + gap + (unit + 6 if captions else 0)
    across = len(columns) * (width + gap) - gap
    lines = textwrap.wrap(note, max(20, int(len(note) * across / max(1, small.getlength(note)))))
    top, bottom = margin + unit + gap, count * pitch
    sheet = Image.new("RGB", (across + 2 * margin, top + bottom + 8 + len(lines) * (unit + 4) + margin - 4), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, pictures) in enumerate(columns.items()):
        left = margin + column * (width + gap)
        draw.text((left, margin), name, fill="#333", font=font, anchor="lt")
        for row, picture in enumerate(pictures):
            rgb = picture if picture.shape[-1] == 3 else picture[..., :1].repeat(3, axis=-1)
            enlarged = Image.fromarray(np.ascontiguousarray(rgb)).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left, top + row * pitch))
    for row, caption in enumerate(captions):
        draw.text((margin, top + row * pitch + height + 5), caption, fill="#666", font=small, anchor="lt")
    for line, words in enumerate(lines):
        draw.text((margin, top + bottom + 8 + line * (unit + 4)), words, fill="#666", font=small, anchor="lt")
    return sheet
