"""The set of models that a server serves: the configured names, what "auto" stands for, and whose weights are there.

Asked once at a start. Front end and worker must agree on the set, because it names their queue.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path
from typing import Final

from wan_pipelines.preset import LORA_FOLDER
from wan_pipelines.profile import Profile, checkpoint_folder, load_profile, load_served
from wan_pipelines.weights.files import lora_candidates, weight_files
from wan_server.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
#: what "auto" takes, the first that fits: profile, and GiB of GPU memory. Cards sold with 80 and with 24 GB show a
#: little less; of the latter those that show 22.5 GiB are too small for the autoencoder of the 5B
AUTO_CHOICES: Final = (("wan2.2-i2v-a14b", 78.0), ("wan2.2-ti2v-5b", 23.5))
#: needs no GPU and ships with wanbox
AUTO_FALLBACK: Final = "tiny"
SMI_TIMEOUT_S: Final = 10


def settle(settings: Settings, *, with_worker: bool = True) -> Settings:
    """The settings with `models` as every process of this server writes them. Raises ProfileError, SettingsError.

    Without a worker beside it a front end cannot know which GPU "auto" means.
    """
    names = settings.served
    if AUTO in names:
        if len(names) > 1:
            raise SettingsError('WANBOX_MODELS: "auto" stands alone')
        if not with_worker:
            raise SettingsError(
                'WANBOX_MODELS: "auto" looks at the GPU of this machine, and front end and worker may be on two; '
                "name the models for both"
            )
        names = (auto_model(settings),)
    profiles = [load_served(name, settings.configs) for name in names]
    stems = [profile.name for profile in profiles]
    if doubled := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise SettingsError(f"WANBOX_MODELS: names {', '.join(doubled)} twice; no request would reach the second one")
    return settings.model_copy(update={"models": tuple(p.served_as for p in profiles), "model": None})


def served_profiles(settings: Settings) -> tuple[Profile, ...]:
    """The profiles of the configured set, in its order. Raises ProfileError."""
    return tuple(load_served(name, settings.configs) for name in settings.served)


def auto_model(settings: Settings) -> str:
    """The best model for the GPU of this machine among those whose weights are there; says which and why."""
    memory = 0.0 if settings.device == "cpu" else max(gpu_memory_gib(), default=0.0)
    why = []
    for name, wanted in AUTO_CHOICES:
        profile = load_profile(name, settings.configs)
        folder = checkpoint_folder(profile, settings.weights, settings.configs)
        if memory < wanted:
            why.append(f"{name} wants a GPU of {wanted:.0f} GiB ({f'has {memory:.0f}' if memory else 'has none'})")
        elif not has_weights(profile, folder):
            why.append(f"the weights of {name} are not in {folder}")
        else:
            logger.info("auto: %s, for a GPU of %.0f GiB", "; ".join((f"serving {name}", *why)), memory)
            return name
    logger.info("auto: serving %s, because %s", AUTO_FALLBACK, "; ".join(why))
    return AUTO_FALLBACK


def has_weights(profile: Profile, folder: Path) -> bool:
    """Whether weights of any layout lie where the loader looks, with the low-rank additions of the preset."""
    if profile.weights_from == "random":
        return True
    loras = [lora_candidates(lora, folder) for lora in profile.loras]
    passed_over = {path for paths in loras for path in paths}
    weights = (path for path in weight_files(folder) if path.parent.name != LORA_FOLDER and path not in passed_over)
    return all(loras) and any(weights)


def gpu_memory_gib() -> list[float]:
    """Memory of each NVIDIA GPU, asked of the driver's own tool; empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("nvidia-smi does not answer: %s", error)
        return []
    if done.returncode != 0:
        return []
    return [float(line) / 1024 for line in done.stdout.splitlines() if line.strip()]
