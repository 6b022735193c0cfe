"""First stage of the sister: wav2vec 2.0 in miniature, taught to tell from its states how loud a sound is.

The published speech model was trained to understand speech. This one learns only what the transformer needs of it:
every layer is asked how far a mouth is open. The readers that ask are thrown away afterwards.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2Model

from tinywan.s2v_recipe import Listening, SisterRecipe, Voice
from tinywan.training import Schedule, Trainer
from tinywan.voices import draw_sound, openings
from wan_pipelines.s2v.speech import RATE, STATE_RATE, normalised


class Listener(nn.Module):
    """The speech model, and a reader for each of its states."""

    def __init__(self, model: Wav2Vec2Model) -> None:
        super().__init__()
        self.model = model
        states = model.config.num_hidden_layers + 1
        self.readers = nn.ModuleList(nn.Linear(model.config.hidden_size, 1) for _ in range(states))

    def forward(self, values: Tensor) -> Tensor:
        """What is read [layers + 1, N, n] at 50 Hz of normalised sounds [N, samples]."""
        output = self.model(values, output_hidden_states=True)
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        return torch.stack([reader(state)[..., 0] for reader, state in zip(self.readers, states, strict=True)])


def build_listener(shape: Listening) -> Wav2Vec2Model:
    """The speech model with random weights, in the variant of the large ones: layer norm, biases, norm first."""
    config = Wav2Vec2Config(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ffn,
        conv_dim=(shape.conv,) * 7,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
    )
    return Wav2Vec2Model(config)


def train_listener(recipe: SisterRecipe, state: Path, deadline: float) -> tuple[Wav2Vec2Model, bool]:
    """The running average of the weights, and whether the stage is done."""
    torch.manual_seed(recipe.seed)
    shape = recipe.listening
    trainer = Trainer(
        Listener(build_listener(shape)),
        Schedule((shape.steps,), shape.warmup, shape.learning_rate, shape.final_learning_rate),
        shape.ema,
        state,
    )
    heard: list[np.ndarray] = []

    def loss_of(step: int) -> dict[str, Tensor]:
        if not heard:
            numbers = range(shape.sounds)
            heard.extend(draw_sound(recipe.voice, recipe.rng("sound", n), shape.seconds) for n in numbers)
        values, wanted = _batch(heard, recipe, recipe.rng("listener", step))
        return {"opening": functional.mse_loss(trainer.model(values), wanted.expand(shape.layers + 1, -1, -1))}

    done = trainer.run(loss_of, deadline)
    average = trainer.average
    assert isinstance(average, Listener)
    _report(average, recipe)
    return average.model, done


def _batch(heard: list[np.ndarray], recipe: SisterRecipe, rng: Random) -> tuple[Tensor, Tensor]:
    """Pieces of some sounds [N, samples], and how far a mouth is open at each state [N, n]."""
    shape = recipe.listening
    count = round(rng.uniform(shape.least_seconds, shape.seconds) * RATE)
    pieces = []
    for sound in rng.sample(heard, shape.batch):
        start = rng.randint(0, len(sound) - count)
        pieces.append(sound[start : start + count])
    wanted = [_wanted(piece, recipe.voice) for piece in pieces]
    return torch.from_numpy(np.stack([normalised(piece) for piece in pieces])), torch.from_numpy(np.stack(wanted))


def _wanted(samples: np.ndarray, voice: Voice) -> np.ndarray:
    """Openings at the states of a sound: a state hears 400 samples, and the next begins 320 later."""
    count = (len(samples) - 400) // (RATE // STATE_RATE) + 1
    return openings(samples, np.arange(count) / STATE_RATE, voice)


@torch.inference_mode()
def _report(listener: Listener, recipe: SisterRecipe) -> None:
    """How much of the openings each state tells, on sounds that training never heard."""
    sounds = [draw_sound(recipe.voice, recipe.rng("held out sound", n), 5.0) for n in range(20)]
    read = listener(torch.from_numpy(np.stack([normalised(sound) for sound in sounds])))
    wanted = torch.from_numpy(np.stack([_wanted(sound, recipe.voice) for sound in sounds]))
    left = (read - wanted).square().mean(dim=(1, 2)) / wanted.var()
    print("openings told by the states, held out:", ", ".join(f"{1 - float(part):.1%}" for part in left))
