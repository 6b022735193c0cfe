"""Second stage: a tokenizer and a small umT5 encoder that understands the commands.

The encoder learns to tell from its states what is asked for (move, speed, what is drawn). The linear readers that
it is trained with are thrown away; the denoiser reads the same states by cross attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from tinywan.captions import Commands, Content, Language
from tinywan.recipe import Recipe, Text
from tinywan.training import Schedule, Trainer

NOTHING = "none"


class Reader(nn.Module):
    """The encoder and, for training only, one linear reader per question over the mean of its states."""

    def __init__(self, encoder: UMT5EncoderModel, questions: dict[str, list[str]]) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.d_model
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(answers)) for name, answers in questions.items()})

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, L, D]
        weight = mask[:, :, None].float()
        mean = (states * weight).sum(1) / weight.sum(1)
        return {name: head(mean) for name, head in self.heads.items()}


def questions(commands: Commands) -> dict[str, list[str]]:
    """What the encoder is asked about a prompt, and the possible answers."""
    colours = [NOTHING, *sorted(commands.words.colours)]
    return {
        "move": [NOTHING, *commands.moves, *commands.sprites],
        "speed": list(commands.speeds["en"]),
        "pattern": [NOTHING, *commands.words.patterns],
        "first": colours,
        "second": colours,
        "sprite": colours,
        "shape": [NOTHING, *commands.words.shapes],
    }


def random_content(commands: Commands, rng: Random) -> Content:
    """Anything that the training clips may show."""
    colours = sorted(commands.words.colours)
    sprite = (rng.choice(colours), rng.choice(sorted(commands.words.shapes))) if rng.random() < 0.3 else None
    moves = [*commands.sprites] if sprite else [*commands.moves, *commands.moves, None]
    drawn = rng.random() < 0.5
    return Content(
        move=rng.choice(moves),
        speed=rng.choice([*commands.speeds["en"]]),
        pattern=rng.choice(sorted(commands.words.patterns)) if drawn else "photo",
        colours=tuple(rng.sample(colours, 2)) if drawn else (),
        sprite=sprite,
    )


def train_tokenizer(commands: Commands, recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte pairs of the prompts that training can make: every language, no unknowns. Ends with </s>, as T5 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])  # pyright: ignore[reportAttributeAccessIssue]
    # every Han character stands alone, so that a phrase nobody wrote before is still made of known tokens
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.text.vocabulary,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(commands, recipe), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=recipe.text.length,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_text_encoder(shape: Text, vocabulary: int) -> UMT5EncoderModel:
    """The encoder with random weights."""
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=shape.width,
        d_kv=shape.width // shape.heads,
        d_ff=2 * shape.width,
        num_layers=shape.layers,
        num_heads=shape.heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return UMT5EncoderModel(config)


def train_text(
    recipe: Recipe,
    commands: Commands,
    tokenizer: PreTrainedTokenizerFast,
    state: Path,
    deadline: float,
    device: torch.device,
) -> tuple[Reader, bool]:
    """The running average of encoder and readers, and whether the stage is done."""
    torch.manual_seed(recipe.seed)
    text, asked = recipe.text, questions(commands)
    schedule = Schedule((text.steps,), text.warmup, text.learning_rate, text.learning_rate / 20)
    reader = Reader(build_text_encoder(text, len(tokenizer)), asked).to(device)
    trainer = Trainer(reader, schedule, text.ema, state)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = recipe.rng("text", step)
        contents = [random_content(commands, rng) for _ in range(text.batch)]
        captions = [commands.caption(content, rng) for content in contents]
        answers = trainer.model(*(part.to(device) for part in tokens(tokenizer, captions)))
        return {
            name: functional.cross_entropy(answers[name], truth.to(device))
            for name, truth in _truths(asked, contents, captions, commands).items()
        }

    done = trainer.run(loss_of, deadline)
    average = trainer.average
    assert isinstance(average, Reader)
    return average, done


def tokens(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, longest]."""
    batch = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    return torch.as_tensor(batch["input_ids"]), torch.as_tensor(batch["attention_mask"])


@torch.inference_mode()
def understanding(
    reader: Reader, commands: Commands, tokenizer: PreTrainedTokenizerFast, rng: Random, language: Language
) -> float:
    """Share of 500 prompts in held-out phrases whose move is read rightly."""
    contents = [random_content(commands, rng) for _ in range(500)]
    captions = [commands.caption(content, rng, language=language, held_out=True) for content in contents]
    device = next(reader.parameters()).device
    answers = reader(*(part.to(device) for part in tokens(tokenizer, captions)))["move"].argmax(1).cpu()
    moves = questions(commands)["move"]
    return float(
        (answers == torch.tensor([moves.index(content.move or NOTHING) for content in contents])).float().mean()
    )


def _truths(
    asked: dict[str, list[str]], contents: list[Content], captions: list[str], commands: Commands
) -> dict[str, Tensor]:
    """Indices of the right answers. What the caption left out is nothing."""
    rows = [_truth(content, caption, commands) for content, caption in zip(contents, captions, strict=True)]
    return {name: torch.tensor([answers.index(row[name]) for row in rows]) for name, answers in asked.items()}


def _truth(content: Content, caption: str, commands: Commands) -> dict[str, str]:
    words = commands.words
    drawn = content.pattern != "photo"
    said = drawn and (f" {content.pattern}" in caption or f"的{words.patterns[content.pattern]}" in caption)
    colour, shape = content.sprite or (NOTHING, NOTHING)
    still = content.move in (None, "static")
    return {
        "move": content.move or NOTHING,
        "speed": "normal" if still else content.speed,
        "pattern": content.pattern if said else NOTHING,
        "first": content.colours[0] if said else NOTHING,
        "second": content.colours[1] if said else NOTHING,
        "sprite": colour,
        "shape": shape,
    }


def _corpus(commands: Commands, recipe: Recipe) -> Iterator[str]:
    rng = recipe.rng("corpus")
    return (commands.caption(random_content(commands, rng), rng) for _ in range(recipe.text.corpus))
