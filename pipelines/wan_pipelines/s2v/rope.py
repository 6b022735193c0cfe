"""Rotary positions of tokens that do not lie on one regular grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """Tokens in order of time, row and column, and where they lie.

    Units are latent frames and patches of the noisy video; a negative time lies before its first frame.
    """

    times: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """So many positions from `first` to `last`, cut to whole numbers as the weights were trained with."""
    return tuple(np.linspace(first, last, count).astype(int).tolist())


class S2VRotaryPosEmbed(WanRotaryPosEmbed):
    """diffusers' tables, read at any positions.

    Source: Wan-Video/Wan2.2 wan/modules/s2v/s2v_utils.py, which holds e^(i p f) for positions p >= 0 and takes the
    conjugate before the video: the same cosine, and the sine with the other sign.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def at(self, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, S, 1, d] of all tokens, grid after grid."""
        cosines, sines = zip(*(self._tables(grid) for grid in grids), strict=True)
        return torch.cat(cosines, dim=1), torch.cat(sines, dim=1)

    def _tables(self, grid: Grid) -> tuple[Tensor, Tensor]:
        size = (len(grid.times), len(grid.rows), len(grid.columns))
        places = [torch.tensor(axis, device=self.freqs_cos.device) for axis in (grid.times, grid.rows, grid.columns)]
        widths = [self.t_dim, self.h_dim, self.w_dim]
        axes_cos, axes_sin = self.freqs_cos.split(widths, dim=1), self.freqs_sin.split(widths, dim=1)
        cosines = [table[place.abs()] for table, place in zip(axes_cos, places, strict=True)]
        sines = [table[place.abs()] * place.sign()[:, None] for table, place in zip(axes_sin, places, strict=True)]
        return _joined(cosines, size), _joined(sines, size)


def _joined(tables: Sequence[Tensor], size: tuple[int, int, int]) -> Tensor:
    """Tables [n, d_axis] of the three axes to one [1, T * H * W, 1, d]."""
    views = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
    wide = [table.view(*view, table.shape[-1]).expand(*size, -1) for table, view in zip(tables, views, strict=True)]
    return torch.cat(wide, dim=-1).reshape(1, -1, 1, sum(table.shape[-1] for table in tables))
