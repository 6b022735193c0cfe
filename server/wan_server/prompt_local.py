"""A language model in a folder of this machine (Qwen-VL class), loaded for one answer and released after it."""

from __future__ import annotations

import gc
import hashlib
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from safetensors import SafetensorError

from wan_server.prompt_chat import MAX_ANSWER_TOKENS, Beat, Chat, PromptError

if TYPE_CHECKING:
    from torch import Tensor


def ask_local(folder: Path, device: str, timeout_s: float, chat: Chat, beat: Beat) -> str:
    """The answer of the model in `folder`, without chance. `device` as in the settings; `timeout_s` without loading.

    `beat` is called around the loading and at every token. Raises PromptError, and whatever `beat` raises.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    if not (folder / "config.json").is_file():
        raise PromptError(f"there is no model in {folder}")
    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    model: Any = None
    try:
        processor = load_processor(folder)
        beat()
        model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, dtype="auto", device_map=where
        ).eval()
        beat()
        return _answer(model, processor, chat, timeout_s, beat)
    except (OSError, ValueError, KeyError, ImportError, TemplateError, SafetensorError) as error:
        raise PromptError(f"the model in {folder} cannot be used: {_short(error)}") from error
    except RuntimeError as error:
        if "CUDA error" in str(error):  # the device itself is broken, and the worker must know
            raise
        raise PromptError(f"the model in {folder} cannot run on {where.type}: {_short(error)}") from error
    finally:
        if model is not None:
            model.to("meta")  # lets go of the weights also while a traceback still holds the model
        gc.collect()
        if where.type == "cuda":
            torch.cuda.empty_cache()


def load_processor(folder: Path) -> Any:
    """The model's tokenizer and image processor in one.

    Those of the Qwen-VL family ask for torchvision, which they need for videos only. No videos are shown here, so
    without torchvision they are put together without that part. Raises OSError, ValueError, ImportError.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils.import_utils import is_torchvision_available

    kind: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(folder, local_files_only=True)), None)
    parts = kind.get_attributes() if hasattr(kind, "get_attributes") else []
    if "video_processor" not in parts or is_torchvision_available():
        return AutoProcessor.from_pretrained(folder, local_files_only=True)
    parts = [name for name in parts if name != "video_processor"]
    stills_only: Any = type(f"{kind.__name__}OfStills", (kind,), {"get_attributes": classmethod(lambda _: parts)})
    return stills_only.from_pretrained(folder, local_files_only=True)


def fingerprint(folder: Path) -> str:
    """Changes with the files of the model, by their names, sizes and times."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.glob("*")):
        facts = path.stat()
        digest.update(f"{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _answer(model: Any, processor: Any, chat: Chat, timeout_s: float, beat: Beat) -> str:
    import torch
    from transformers import StoppingCriteriaList

    messages = [
        {"role": "system", "content": [_part(chat.system)]},
        {"role": "user", "content": [_part(part) for part in chat.parts]},
    ]
    given = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    deadline = time.monotonic() + timeout_s

    def watch(tokens: Tensor, _scores: Any, **_: Any) -> Tensor:
        """After every token: whether to stop, [batch]. Here it never says so, it raises."""
        beat()
        if time.monotonic() > deadline:
            raise PromptError(f"no answer within {timeout_s:g} s")
        return tokens.new_zeros(tokens.shape[0], dtype=torch.bool)

    made = model.generate(
        **given,
        max_new_tokens=MAX_ANSWER_TOKENS,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([watch]),  # pyright: ignore[reportArgumentType]
    )
    new = made[:, given["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0]


def _part(part: str | bytes) -> dict[str, Any]:
    from PIL import Image

    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": Image.open(io.BytesIO(part)).convert("RGB")}


def _short(error: Exception) -> str:
    """The first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__
