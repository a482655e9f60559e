"""Which photographs can be moved along the transition without damage, judged before anything is moved.

It knows nothing about pairs or classifiers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visard_training import warp
from visard_training.data import Sample
from visard_training.transition import Transition, bearded_share
from visard_training.warp import Shape

FILTERS = ("large enough", "frontal", "landmarks fit", "no full beard")

MIN_SIDE_PX = 200  # edge of the alignment square in the photo: below it, faces have fewer than 70 pixels
MAX_YAW = 0.17  # some 30 degrees
MAX_MISFIT = 0.2  # of the distance between the eyes: 2 in 100 faces in the wild lie above
MAX_BEARD = 0.8  # of the beard region: beyond it, shaving leaves a rim


def pose_rejection(sample: Sample) -> str | None:
    """Name the filter that a face fails before its picture is looked at, None where it passes."""
    if sample.side_px < MIN_SIDE_PX:
        return "large enough"
    if yaw(sample.landmarks) > MAX_YAW:
        return "frontal"
    return None


def rejection(sample: Sample, image: NDArray[np.uint8], landmarks: Shape, transition: Transition) -> str | None:
    """Name the first filter that a face fails before it is moved, None where it passes all.

    Args:
        sample: the face.
        image: its picture at the transition's size.
        landmarks: at the transition's size.
        transition: knows what a face is.
    """
    if (reason := pose_rejection(sample)) is not None:
        return reason
    if misfit(landmarks, transition.mean_shape) > MAX_MISFIT:
        return "landmarks fit"
    if sample.gender == "male" and bearded_share(image, landmarks, transition) > MAX_BEARD:
        return "no full beard"
    return None


def yaw(landmarks: NDArray[Any]) -> float:
    """How far the tip of the nose is off the middle between the ears, in widths of the face; 0 for a frontal face."""
    left, right, nose = (float(landmarks[i, 0]) for i in (0, 16, 30))
    return abs(nose - (left + right) / 2) / max(right - left, 1.0)


def misfit(landmarks: Shape, mean_shape: Shape) -> float:
    """How far a shape is from any affine image of the mean shape: RMS, in distances between the eyes."""
    fitted = np.column_stack([mean_shape, np.ones(len(mean_shape))]) @ warp.affine(mean_shape, landmarks)
    return float(np.sqrt(((landmarks - fitted) ** 2).sum(1).mean())) / warp.eye_distance(landmarks)
