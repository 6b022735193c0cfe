"""The command line beyond serving and rendering: keys, models, and starts that are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server_process import clean_environment
from wan_pipelines.profile import load_profile
from wan_server.models import installed, verdict
from wan_server.settings import find_config_dir, load_settings


def wanbox(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wan_server.cli", *words],
        env=clean_environment() | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    made = wanbox("keys", "create", "laptop", "--data-dir", str(tmp_path))
    token = made.stdout.split()[0]
    assert token.startswith("inf_")
    listed = wanbox("keys", "list", "--data-dir", str(tmp_path)).stdout
    assert "laptop" in listed
    assert token not in listed
    key_id = made.stdout.split("kept as ")[1].split()[0]
    assert "revoked" in wanbox("keys", "revoke", key_id, "--data-dir", str(tmp_path)).stdout
    assert wanbox("keys", "revoke", "nobody", "--data-dir", str(tmp_path)).returncode == 2


def test_the_models_are_listed_with_what_they_need(tmp_path: Path) -> None:
    listed = wanbox("models", "--data-dir", str(tmp_path))
    assert listed.returncode == 0
    assert "built in" in listed.stdout
    assert "wan2.2-i2v-a14b:fast" in listed.stdout


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (("serve", "--host", "0.0.0.0"), {}, "key"),
        (("serve", "--model", "nothing"), {}, "nothing"),
        (("serve", "--models", "tiny,tiny:fast"), {}, "has no preset 'fast'; it has quality"),
        (("serve",), {"WANBOX_MODEL": "tiny", "WANBOX_MODELS": "tiny-ti2v"}, "WANBOX_MODELS: is given twice"),
        (("serve", "--no-worker", "--models", "auto"), {}, "name the models for both"),
        (("serve", "--port", "99999"), {}, "WANBOX_PORT"),
        (("serve",), {"WANBOX_PROT": "1"}, "WANBOX_PROT"),
        (("serve", "--data-dir", "/dev/null/x"), {}, "WANBOX_DATA_DIR"),
    ],
)
def test_a_start_that_cannot_go_well_is_refused(
    tmp_path: Path, words: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    given = words if "--data-dir" in words else (*words, "--data-dir", str(tmp_path))
    refused = wanbox(*given, **environment)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_verdict_names_what_is_missing(tmp_path: Path) -> None:
    large = load_profile("wan2.2-i2v-a14b", find_config_dir())
    settings = load_settings()
    assert verdict(large, [], settings) == f"no: needs a GPU with {large.gpu_gib_least:.0f} GiB, has none"
    assert verdict(large, [12.0], settings).endswith("has 12 GiB")
    assert verdict(large, [24.0], settings) == "yes, offload_layers (24 GiB GPU; 86 GiB would hold all)"
    assert verdict(large, [24.0, 141.0], settings).startswith("yes, resident (141 GiB GPU")
    small = load_profile("wan2.2-ti2v-5b", find_config_dir())
    assert verdict(small, [24.0], settings).startswith("yes, offload_parts (24 GiB GPU")
    assert installed(large, tmp_path) == "no: wanbox weights get wan2.2-i2v-a14b (126 GB)"
    (tmp_path / "high_noise_model").mkdir()
    (tmp_path / "high_noise_model" / "diffusion_pytorch_model-00001-of-00006.safetensors").touch()
    assert installed(large, tmp_path) == "yes"
    assert installed(large.with_preset("fast"), tmp_path).startswith("no: wanbox weights get wan2.2-i2v-a14b:fast")
