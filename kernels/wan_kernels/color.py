"""RGB to YUV as video encoders take it: BT.709, limited range, 8 bits.

ITU-R BT.709-6, items 3.2 to 3.5: Y = 0.2126 R + 0.7152 G + 0.0722 B, Cb = (B - Y) / 1.8556,
Cr = (R - Y) / 1.5748; luma is stored as 16 to 235, chroma as 16 to 240 around 128.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

KR, KG, KB = 0.2126, 0.7152, 0.0722
LUMA_SPAN, LUMA_ZERO = 219.0, 16.0
CHROMA_SPAN, CHROMA_ZERO = 224.0, 128.0
HALF = 0.5  # casts to uint8 cut; with a half added they round


def rgb_to_yuv420(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Planes y [F, H, W] and u, v [F, H/2, W/2] of RGB frames.

    frames: [F, 3, H, W] float in [0, 1] (values outside are clamped), H and W even, any device.
    Each chroma sample is the mean of its 2x2 pixels, so it sits in their centre. The planes are views of the one
    buffer that `rgb_to_i420` fills.
    """
    height, width = frames.shape[-2:]
    flat = rgb_to_i420(frames).flatten(1)
    y, u, v = flat.split((height * width, height * width // 4, height * width // 4), dim=1)
    half = (height // 2, width // 2)
    return y.unflatten(1, (height, width)), u.unflatten(1, half), v.unflatten(1, half)


def rgb_to_i420(frames: torch.Tensor) -> torch.Tensor:
    """The planes of `rgb_to_yuv420` one after the other: uint8 [F, H * 3/2, W], 1.5 bytes per pixel."""
    count, _, height, width = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"4:2:0 needs even sides (got {width}x{height})")
    rgb = _clamped(frames)
    out = torch.empty((count, height * 3 // 2, width), dtype=torch.uint8, device=frames.device)
    small = F.avg_pool2d(rgb, 2)
    chroma = out.flatten(1)[:, height * width :].unflatten(1, (2, height // 2, width // 2))
    _fill_chroma(chroma, small, _luma(small))
    out[:, :height].copy_(_stored_luma(_luma(rgb)))
    return out


def rgb_to_yuv444(frames: torch.Tensor) -> torch.Tensor:
    """Planes y, u, v at full size: uint8 [F, 3, H, W]; for frames that are scaled before chroma is halved."""
    rgb = _clamped(frames)
    out = torch.empty(rgb.shape, dtype=torch.uint8, device=rgb.device)
    luma = _luma(rgb)
    _fill_chroma(out[:, 1:], rgb, luma)
    out[:, 0].copy_(_stored_luma(luma))
    return out


def _clamped(frames: torch.Tensor) -> torch.Tensor:
    return frames.to(torch.float32).clamp(0, 1)


def _luma(rgb: torch.Tensor) -> torch.Tensor:
    """[F, 3, H, W] -> [F, H, W] in [0, 1]."""
    red, green, blue = rgb.unbind(1)
    return torch.mul(red, KR).add_(green, alpha=KG).add_(blue, alpha=KB)


def _stored_luma(luma: torch.Tensor) -> torch.Tensor:
    return luma.mul_(LUMA_SPAN).add_(LUMA_ZERO + HALF)


def _fill_chroma(out: torch.Tensor, rgb: torch.Tensor, luma: torch.Tensor) -> None:
    """Writes u and v of rgb [F, 3, H, W] with its luma [F, H, W] into out [F, 2, H, W]."""
    red, _, blue = rgb.unbind(1)
    for plane, colour, weight in ((0, blue, KB), (1, red, KR)):
        gain = CHROMA_SPAN / (2 * (1 - weight))
        out[:, plane].copy_((colour - luma).mul_(gain).add_(CHROMA_ZERO + HALF))
