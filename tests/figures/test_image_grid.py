"""A grid of images: where each stands, how its row is named, what is black and what is white."""

import numpy as np

from arch_jax.figures.image_grid import image_grid, in_rows


def test_each_row_is_named_once_and_holds_its_images():
    draw = np.random.default_rng(0)
    first, second = draw.random((3, 4, 4, 1)), draw.random((2, 4, 4, 3))
    figure = image_grid({"images": first, "reconstructions": second}, "title")
    cells = np.array(figure.axes).reshape(2, 3)
    assert [[axes.get_ylabel() for axes in row] for row in cells] == [["images", "", ""], ["reconstructions", "", ""]]
    for axes, image in zip(cells[0], first):
        np.testing.assert_array_equal(axes.images[0].get_array(), image[..., 0].astype(np.float32))
    for axes, image in zip(cells[1], second):
        np.testing.assert_array_equal(axes.images[0].get_array(), image.astype(np.float32))
    assert not cells[1, 2].axison
    assert not cells[1, 2].images
    assert figure.get_suptitle() == "title"


def test_pixels_outside_0_to_1_are_black_and_white():
    figure = image_grid({"": np.array([-2.0, 0.0, 1.0, 3.0]).reshape(1, 2, 2, 1)})
    shown = figure.axes[0].images[0]
    assert shown.get_array().tolist() == [[0, 0], [1, 1]]
    assert shown.get_clim() == (0, 1)


def test_rows_are_named_by_their_first_image():
    rows = in_rows(np.arange(7), most=3)
    assert {name: list(row) for name, row in rows.items()} == {"0": [0, 1, 2], "3": [3, 4, 5], "6": [6]}
