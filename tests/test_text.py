"""Prompts: cleaning, padding, and the count of what did not fit."""

from __future__ import annotations

import pytest
import torch

from tiny_checkpoint import CONCAT
from wan_pipelines.text import encode_text, prompt_clean

pytest_plugins = ("pipeline_fixtures",)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a\tcat\n\n runs ", "a cat runs"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("itâ€™s schÃ¶n", "it's schön"),
        ("一只猫　在跑", "一只猫 在跑"),
        ("", ""),
    ],
)
def test_prompt_clean(text, clean):
    assert prompt_clean(text) == clean


@torch.no_grad()
def encode(tiny, text: str, text_len: int = 512):
    checkpoint = tiny(CONCAT).checkpoint
    return encode_text(checkpoint.tokenizer, checkpoint.text_encoder, text, text_len)


def test_states_are_zero_behind_the_last_token(tiny):
    states = encode(tiny, "a cat")
    assert states.states.shape == (1, 512, 32)
    assert states.tokens == 6  # five bytes and the end token
    assert (states.states[:, :6] != 0).any(dim=2).all()
    assert not states.states[:, 6:].any()


def test_a_long_prompt_says_how_much_was_dropped(tiny):
    states = encode(tiny, "x" * 5000)
    assert (states.tokens, states.dropped) == (512, 5001 - 512)
    assert encode(tiny, "x" * 511).dropped == 0


def test_what_is_kept_is_the_beginning_and_the_end_token(tiny):
    assert torch.equal(encode(tiny, "abcdefgh" + "z" * 99, 8).states, encode(tiny, "abcdefg", 8).states)


def test_empty_prompt_is_the_end_token(tiny):
    assert encode(tiny, " ").tokens == 1


@pytest.mark.parametrize("text", ["Ein Mädchen läuft", "一只猫在草地上奔跑", "🎬 naïve ﬀ"])
def test_every_language_comes_back_from_its_tokens(tiny, text):
    tokenizer = tiny(CONCAT).checkpoint.tokenizer
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@torch.no_grad()
def test_the_padding_that_is_left_out_would_change_nothing(tiny):
    checkpoint = tiny(CONCAT).checkpoint
    padded = checkpoint.tokenizer("a cat", padding="max_length", max_length=64, return_tensors="pt")
    hidden = checkpoint.text_encoder(padded["input_ids"], padded["attention_mask"]).last_hidden_state
    assert torch.allclose(encode(tiny, "a cat").states[:, :6], hidden[:, :6], atol=1e-5)
