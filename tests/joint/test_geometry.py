"""Distances, whatever number of threads OpenCV has."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from blsgan.joint.geometry import distance_px


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_distances_are_exact_with_any_number_of_threads(threads):
    y, x = np.mgrid[:300, :500]
    away = (y - 150) ** 2 / 100**2 + (x - 260) ** 2 / 170**2 < 1
    had = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        found = distance_px(away)
    finally:
        cv2.setNumThreads(had)
    np.testing.assert_array_equal(found, distance_transform_edt(away))
