"""Prompt to text states: cleaning, tokens, umT5. Says how many tokens did not fit."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

import ftfy
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel


@dataclass(frozen=True, slots=True)
class TextStates:
    """One encoded prompt."""

    #: [1, text_len, D], zero behind the last token
    states: Tensor
    #: tokens that were encoded, the end token included
    tokens: int
    #: tokens at the end of the prompt that did not fit
    dropped: int


def prompt_clean(text: str) -> str:
    """The cleaning that the weights were trained with: mended Unicode, no HTML entities, single spaces.

    Source: Wan-Video/Wan2.2 wan/modules/tokenizers.py, mode "whitespace".
    """
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", mended).strip()


def encode_text(tokenizer: PreTrainedTokenizerBase, encoder: UMT5EncoderModel, text: str, text_len: int) -> TextStates:
    """Encode `text`, zero-padded to `text_len`: the cross attention has no mask, so the zeros matter.

    Only the true tokens go through the encoder; padding is masked out there and would change nothing.
    """
    cleaned = prompt_clean(text)
    full = len(tokenizer(cleaned, verbose=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    ids = tokenizer(cleaned, truncation=True, max_length=text_len, return_tensors="pt")["input_ids"]
    hidden = encoder(torch.as_tensor(ids, device=encoder.device)).last_hidden_state  # [1, tokens, D]
    states = hidden.new_zeros(1, text_len, hidden.shape[-1])
    states[:, : hidden.shape[1]] = hidden
    return TextStates(states, tokens=hidden.shape[1], dropped=full - hidden.shape[1])
