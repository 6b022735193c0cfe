"""How large the output is and how large it is sampled. No torch.

`resolution` is a budget of pixels and the shape follows the first frame or clip:

* Within 1 % of a well-known aspect the size is the published one: 720P 1280x720, 720x1280, 960x960, 1104x832,
  832x1104; 1080P 1920x1080, 1080x1920, 1440x1440, 1648x1248, 1248x1648.
* Otherwise `width = sqrt(budget * aspect)`, `height = sqrt(budget / aspect)`, each to the nearest even number.
"""

from __future__ import annotations

import math

from wan_pipelines.errors import PlanError

BUDGETS = {"720P": 1280 * 720, "1080P": 1920 * 1080}
MAX_ASPECT = 8.0
_WELL_KNOWN = {
    "720P": ((1280, 720), (720, 1280), (960, 960), (1104, 832), (832, 1104)),
    "1080P": ((1920, 1080), (1080, 1920), (1440, 1440), (1648, 1248), (1248, 1648)),
}
#: nominal width/height of the table's columns; 1104x832 stands for 4:3
_ASPECTS = (16 / 9, 9 / 16, 1.0, 4 / 3, 3 / 4)
_SNAP = 0.01


def output_size(resolution: str, aspect: float, field: str = "first_frame") -> tuple[int, int]:
    """Width and height of the video, both even. `aspect` is width / height of the input `field`.

    Raises PlanError for an unknown resolution and for aspects outside 1:8 to 8:1.
    """
    if resolution not in BUDGETS:
        raise PlanError(f"input.resolution: must be one of {', '.join(BUDGETS)} (got {resolution!r})")
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        raise PlanError(f"input.{field}: aspect ratio must be between 1:8 and 8:1 (got {aspect:.3g})")
    for nominal, size in zip(_ASPECTS, _WELL_KNOWN[resolution], strict=True):
        if max(aspect / nominal, nominal / aspect) <= 1 + _SNAP:  # the same for a frame on its side
            return size
    budget = BUDGETS[resolution]
    return _even(math.sqrt(budget * aspect)), _even(math.sqrt(budget / aspect))


def sample_size(width: int, height: int, multiple: int, sample_pixels: int | None) -> tuple[int, int]:
    """Width and height that the model samples, multiples of `multiple`.

    Without `sample_pixels` the output size rounded up (1080 is sampled as 1088 and cropped). With it, the size
    within that many pixels that shows the most of the output's shape; the frames are scaled up afterwards.
    """
    if sample_pixels is None:
        return _ceil(width, multiple), _ceil(height, multiple)
    units = sample_pixels // multiple**2
    candidates = [(w * multiple, h * multiple) for w in range(1, units + 1) for h in range(1, units // w + 1)]
    return max(candidates, key=lambda size: (_fit(width, height, size), -size[0] * size[1]))


def visible_size(width: int, height: int, sample: tuple[int, int]) -> tuple[int, int]:
    """The centred window of the sample that is shown: the output size itself, or its shape on a smaller scale."""
    scale = min(1.0, _fit(width, height, sample))
    return min(round(width * scale), sample[0]), min(round(height * scale), sample[1])


def _fit(width: int, height: int, box: tuple[int, int]) -> float:
    """Scale at which width x height just fits into the box."""
    return min(box[0] / width, box[1] / height)


def _even(value: float) -> int:
    return 2 * round(value / 2)


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
