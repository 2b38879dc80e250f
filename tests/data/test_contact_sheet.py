import numpy as np
import pytest

from maejax.data.contact_sheet import GAP, draw_contact_sheet


@pytest.mark.parametrize(("channels", "shown"), [(1, (9, 9, 9)), (2, (9, 9, 9)), (3, (9, 10, 11)), (4, (9, 10, 11))])
def test_images_lie_in_rows_with_gaps(channels, shown):
    images = np.arange(9, 9 + channels, dtype=np.uint8) * np.ones((7, 32, 70, 1), np.uint8)
    images[6] += 100
    sheet = np.asarray(draw_contact_sheet(images, least=64))
    assert sheet.shape == (4 * (64 + GAP) + GAP, 2 * (140 + GAP) + GAP, 3)
    assert (sheet[GAP : GAP + 64, GAP : GAP + 140] == shown).all()
    assert sheet[-GAP - 1, GAP].tolist() == [value + 100 for value in shown]  # the seventh, in the fourth row
    assert (sheet[:GAP] == 255).all() and (sheet[-GAP - 64 :, GAP + 140 + GAP :] == 255).all()
