"""Colours that stand for something differ for every reader: seen through models of colour blindness."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from workbench.plots import theme

#: linear RGB as it is seen (Machado, Oliveira and Fernandes 2009, severity 1)
SEEN = {
    "all colours": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    srgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB, in which a distance of 2.3 is just noticeable side by side."""
    x = XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize(("colours", "least"), [(theme.RANK_COLOURS, 10), (tuple(theme.PHASES.values()), 6)])
def test_no_two_look_alike(colours: tuple[str, ...], least: float, seen: str) -> None:
    places = {colour: lab(np.array(SEEN[seen]) @ linear(colour)) for colour in colours}
    for one, other in combinations(colours, 2):
        assert np.linalg.norm(places[one] - places[other]) > least, (one, other)


@pytest.mark.parametrize("colour", theme.RANK_COLOURS)
def test_lines_stand_out_from_light_and_dark(colour: str) -> None:
    def luminance(of: str) -> float:
        return float(XYZ[1] @ linear(of))

    light, dark = (1.05 / (luminance(colour) + 0.05), (luminance(colour) + 0.05) / (luminance("#111418") + 0.05))
    assert min(light, dark) > 2
