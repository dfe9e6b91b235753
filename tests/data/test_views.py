"""Views of tiles: parts of them, turned, the same for the same seed."""

import numpy as np
import pytest
from PIL import Image

from mint.data.tiles import Tile
from mint.data.views import draw_views
from mint.errors import InputError


@pytest.fixture
def tile(tmp_path):
    """Every pixel says where it is: red by column, green by row."""
    column, row = np.meshgrid(np.arange(60), np.arange(40))
    Image.fromarray(np.stack((column, row, row * 0), -1).astype(np.uint8)).save(tmp_path / "x.png")
    return Tile("a/b", tmp_path / "x.png", "Colon", subject="slide 1", split="train")


def test_views_are_turned_squares_of_the_tile(tile, tmp_path):
    views = draw_views([tile], 40, tmp_path / "views")
    assert views[0] is tile and len({view.id for view in views}) == len({view.image for view in views}) == 40
    turns = set()
    for view in views[1:]:
        assert (view.tissue, view.subject, view.split) == ("Colon", "slide 1", "train")
        pixels = np.asarray(Image.open(view.image)).astype(int)
        side = len(pixels)
        assert 24 <= side <= 40 and pixels.shape == (side, side, 3)
        across, down = pixels[0, -1] - pixels[0, 0], pixels[-1, 0] - pixels[0, 0]
        assert sorted(abs(across[:2])) == sorted(abs(down[:2])) == [0, side - 1]  # a whole square, nothing resampled
        turns.add((*across[:2] // (side - 1), *down[:2] // (side - 1)))
    assert len(turns) == 8  # four quarters, mirrored and not


def test_views_depend_on_seed_and_tile_alone(tile, tmp_path):
    def pixels(folder, tiles, **options):
        return [Image.open(view.image).tobytes() for view in draw_views(tiles, 3, tmp_path / folder, **options)]

    other = Tile("other", tile.image, "Lung")
    assert pixels("a", [tile]) == pixels("b", [other, tile])[3:]
    assert pixels("a", [tile])[1:] != pixels("c", [tile], seed=1)[1:]
    assert draw_views([tile], 1, tmp_path / "d") == [tile]


def test_views_that_cannot_be_drawn(tile, tmp_path):
    with pytest.raises(InputError, match="at least one view"):
        draw_views([tile], 0, tmp_path / "views")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        draw_views([tile], 2, tmp_path / "file")
