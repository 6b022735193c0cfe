"""Pictures to CLIP states, which Wan 2.1 image-to-video shows its cross attention beside the text."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModel

#: mean and standard deviation of red, green and blue in CLIP's training (openai/CLIP clip/clip.py)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def embed_pictures(encoder: CLIPVisionModel, pictures: Tensor) -> Tensor:
    """States before the last layer [n, tokens, D] of pictures [n, 3, H, W] in [-1, 1]; 257 tokens of ViT-H/14.

    The whole picture is squeezed into CLIP's square without smoothing, as the published code does
    (Wan-Video/Wan2.1 wan/modules/clip.py); CLIP's own preprocessor, which diffusers runs, cuts its sides off.
    """
    side = int(encoder.config.image_size)  # pyright: ignore[reportArgumentType]
    square = functional.interpolate(pictures, size=(side, side), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values).to(square).view(1, 3, 1, 1) for values in (MEAN, STD))
    pixels = (square / 2 + 0.5 - mean) / std
    outputs = encoder(pixels.to(encoder.dtype), output_hidden_states=True)
    return outputs.hidden_states[-2]
