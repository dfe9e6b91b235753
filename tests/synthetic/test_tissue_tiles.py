"""Drawn tiles: the table, that a seed decides them, that tissues differ and nuisances vary."""

import numpy as np
import pytest

from mint.data.tiles import PANNUKE_TISSUES
from mint.synthetic.tissue_tiles import draw_tile, load_tissues

TISSUES = load_tissues()


def pixels(tissue, seed):
    return np.asarray(draw_tile(tissue, seed), np.float64)


def test_the_table_holds_pannukes_tissues():
    assert tuple(tissue.tissue for tissue in TISSUES) == PANNUKE_TISSUES
    assert len({tuple(vars(tissue).values())[1:] for tissue in TISSUES}) == 19


@pytest.mark.parametrize("tissue", TISSUES, ids=lambda tissue: tissue.tissue)
def test_a_seed_decides_a_tile(tissue):
    """Every tile has dark nuclei on a lighter ground, and another seed gives another one."""
    tile = pixels(tissue, "a")
    assert tile.shape == (64, 64, 3) and np.array_equal(tile, pixels(tissue, "a"))
    assert np.abs(tile - pixels(tissue, "b")).mean() > 5
    red = tile[..., 0]  # haematoxylin takes red, eosin does not
    assert np.percentile(red, 95) - np.percentile(red, 5) > 25


def test_what_is_drawn_is_what_the_table_says():
    """Means over ten tiles: air only in the lung, a common direction only in muscle, open glands in the colon."""
    named = {tissue.tissue: tissue for tissue in TISSUES}

    def mean(name, measure):
        return np.mean([measure(pixels(named[name], seed)) for seed in range(10)])

    def white(tile):
        return (tile.min(-1) > 0.85 * tile.max()).mean()

    def coherence(tile):
        """Of the gradients' directions: 0 where all are alike, 1 where one prevails."""
        dy, dx = np.gradient(tile.mean(-1))
        return np.hypot((dx**2 - dy**2).mean(), 2 * (dx * dy).mean()) / (dx**2 + dy**2).mean()

    assert mean("Lung", white) > 0.2 > 5 * mean("Liver", white)
    assert mean("Uterus", coherence) > 2 * mean("Liver", coherence)
    assert mean("Colon", white) > mean("Bladder", white)
