"""How the picture moves: dense optical flow, summed up as one shift and one growth per frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

#: motion below this many pixels per frame counts as standing still
STILL = 0.15


@dataclass(frozen=True, slots=True)
class Flow:
    """Mean motion of the picture (not of the camera) from one frame to the next."""

    #: pixels to the right and down
    dx: float
    dy: float
    #: growth, as a logarithm
    zoom: float
    #: mean distance of a pixel from the centre, which turns growth into pixels
    radius: float

    @property
    def move(self) -> str:
        """The camera move of `moves.MOVES` that this is most like."""
        candidates = {
            "pan_left": self.dx,
            "pan_right": -self.dx,
            "pan_up": self.dy,
            "pan_down": -self.dy,
            "zoom_in": self.zoom * self.radius,
            "zoom_out": -self.zoom * self.radius,
            "static": STILL,
        }
        return max(candidates, key=lambda move: candidates[move])

    def vector(self) -> npt.NDArray[np.float64]:
        """Shift and growth in pixels [3]."""
        return np.array([self.dx, self.dy, self.zoom * self.radius])


def mean_flow(frames: Tensor, gap: int = 4) -> Flow:
    """Motion per frame over a clip [T, 3, H, W] in [0, 1], from pairs of frames `gap` apart.

    Each pair is measured with dense inverse search (Kroeger et al. 2016); pixels count by their texture, since flat
    ones say nothing.
    """
    grey = [_grey(frame) for frame in frames[::gap]]
    fits = [_fit(first, second) for first, second in pairwise(grey)]
    dx, dy, zoom = np.mean(fits, axis=0) / gap
    height, width = grey[0].shape
    return Flow(float(dx), float(dy), float(zoom), _radius(width, height))


def cosine(one: Flow, other: Flow) -> float:
    """Agreement of two motions, 1 when they are the same but for speed."""
    a, b = one.vector(), other.vector()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9))


def _grey(frame: Tensor) -> npt.NDArray[np.uint8]:
    return (frame.mean(dim=0) * 255).round().clamp(0, 255).byte().numpy()


def _fit(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Least squares of flow = shift + zoom * position, weighted by texture: [dx, dy, zoom]."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = search.calc(first, second, np.zeros((*first.shape, 2), np.float32)).astype(np.float64)  # [H, W, 2]
    down, across = np.gradient(first.astype(np.float64))
    weight = np.hypot(down, across) + 1e-3
    weight /= weight.sum()
    height, width = first.shape
    y, x = np.mgrid[:height, :width]
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    dx, dy = (weight * flow[..., 0]).sum(), (weight * flow[..., 1]).sum()
    zoom = (weight * (x * flow[..., 0] + y * flow[..., 1])).sum() / (weight * (x * x + y * y)).sum()
    centre = (weight * np.mgrid[:height, :width]).sum(axis=(1, 2)) - (np.array([height, width]) - 1) / 2
    return np.array([dx - zoom * centre[1], dy - zoom * centre[0], zoom])  # the shift at the middle of the frame


def _radius(width: int, height: int) -> float:
    y, x = np.mgrid[:height, :width]
    return float(np.hypot(x - (width - 1) / 2, y - (height - 1) / 2).mean())
