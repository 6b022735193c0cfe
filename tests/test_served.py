"""The configured set of models: names that every process writes alike, "auto", and a server with two of them."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from media_samples import make_clip
from queue_fixtures import make_job, make_settings, open_queue
from server_process import Server, running_server
from wan_pipelines.errors import ProfileError
from wan_pipelines.footprint import bundled_configs, footprint
from wan_pipelines.placement import reach
from wan_pipelines.profile import find_config_dir, load_profile, load_served
from wan_server import served
from wan_server.served import AUTO_CHOICES, has_weights, served_profiles, settle
from wan_server.settings import Settings, SettingsError

CONFIGS = find_config_dir()
APP = "alibaba/wan-2-7-i2v"
SHORT = {"resolution": "720P", "duration": 2, "prompt": "a sea", "prompt_extend": False}


def settings_for(tmp_path: Path, models: str, **given: Any) -> Settings:
    return make_settings(tmp_path, models=models, **given)


def test_names_are_settled_the_same_way_everywhere(tmp_path: Path) -> None:
    settled = settle(settings_for(tmp_path, "wan2.2-i2v-a14b:quality, wan2.2-t2v-a14b:fast, tiny"))
    assert settled.served == ("wan2.2-i2v-a14b", "wan2.2-t2v-a14b:fast", "tiny")
    assert settle(settled) == settled
    assert [profile.preset for profile in served_profiles(settled)] == ["quality", "fast", "quality"]
    assert settle(make_settings(tmp_path, model="tiny-ti2v")).served == ("tiny-ti2v",)


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        ("tiny,wan9", ProfileError, "'wan9' is unknown"),
        ("tiny,tiny:quality", SettingsError, "WANBOX_MODELS: names tiny twice"),
        ("wan2.2-i2v-a14b:fast,wan2.2-i2v-a14b", SettingsError, "no request would reach the second one"),
        ("auto,tiny", SettingsError, "stands alone"),
    ],
)
def test_a_set_that_cannot_be_served_is_refused(tmp_path: Path, models: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        settle(settings_for(tmp_path, models))


def test_auto_needs_its_worker_beside_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name the models for both"):
        settle(settings_for(tmp_path, "auto"), with_worker=False)


@pytest.mark.parametrize(
    ("gpus", "installed", "device", "model", "why"),
    [
        ([], ["wan2.2-i2v-a14b"], "auto", "tiny", "wan2.2-ti2v-5b wants a GPU of 24 GiB (has none)"),
        ([79.6], ["wan2.2-i2v-a14b", "wan2.2-ti2v-5b"], "auto", "wan2.2-i2v-a14b", "for a GPU of 80 GiB"),
        ([139.8], ["wan2.2-ti2v-5b"], "cuda", "wan2.2-ti2v-5b", "the weights of wan2.2-i2v-a14b are not in"),
        ([23.99], ["wan2.2-i2v-a14b", "wan2.2-ti2v-5b"], "auto", "wan2.2-ti2v-5b", "wants a GPU of 78 GiB (has 24)"),
        ([23.99], [], "auto", "tiny", "the weights of wan2.2-ti2v-5b are not in"),
        ([15.9, 11.0], ["wan2.2-ti2v-5b"], "auto", "tiny", "wants a GPU of 24 GiB (has 16)"),
        ([79.6], ["wan2.2-i2v-a14b"], "cpu", "tiny", "has none"),
    ],
)
def test_auto_takes_what_fits_and_is_there_and_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gpus: list[float],
    installed: list[str],
    device: str,
    model: str,
    why: str,
) -> None:
    for name in installed:
        (tmp_path / "weights" / name / "vae").mkdir(parents=True)
        (tmp_path / "weights" / name / "vae" / "diffusion_pytorch_model.safetensors").touch()
    monkeypatch.setattr(served, "gpu_memory_gib", lambda: gpus)
    with caplog.at_level(logging.INFO, "wan_server.served"):
        assert settle(settings_for(tmp_path, "auto", device=device)).served == (model,)
    (line,) = caplog.messages
    assert f"serving {model}" in line
    assert why in line


@pytest.mark.parametrize(("name", "gib"), AUTO_CHOICES)
def test_auto_names_profiles_that_fit(name: str, gib: float) -> None:
    profile = load_profile(name, CONFIGS)
    counted = footprint(bundled_configs(profile, CONFIGS), profile, "bfloat16")
    assert reach(counted, profile, "720P", int(gib * 2**30), None).seconds >= 4


@pytest.mark.parametrize(
    "path",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "high_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors",
        "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
        "wan2.2-i2v-high-Q4_K_M.gguf",
        "Wan2.1_VAE.pth",
        "split_files/diffusion_models/wan2.2_i2v_high_noise_14B_fp16.safetensors",
        "a/b/c/HIGH.SAFETENSORS",
    ],
)
def test_weights_of_any_layout_count(tmp_path: Path, path: str) -> None:
    profile = load_profile("wan2.2-i2v-a14b", CONFIGS)
    assert not has_weights(profile, tmp_path / "absent")
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    assert has_weights(profile, tmp_path)


@pytest.mark.parametrize("path", ["a/b/c/d/deep.safetensors", ".cache/half.safetensors", "notes.txt"])
def test_what_the_loader_does_not_see_does_not_count(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    assert not has_weights(load_profile("wan2.2-i2v-a14b", CONFIGS), tmp_path)


def test_a_preset_needs_its_additions_too(tmp_path: Path) -> None:
    fast = load_served("wan2.2-i2v-a14b:fast", CONFIGS)
    (tmp_path / "loras").mkdir()
    for lora in fast.loras:
        lora.path_in(tmp_path).touch()
    assert not has_weights(fast, tmp_path)
    (tmp_path / "a.safetensors").touch()
    assert has_weights(fast, tmp_path)
    low = fast.loras[1].path_in(tmp_path)
    low.rename(tmp_path / low.name)
    assert has_weights(fast, tmp_path)
    (tmp_path / "a.safetensors").unlink()
    assert not has_weights(fast, tmp_path), "the additions are no weights, wherever they lie"
    (tmp_path / "a.safetensors").touch()
    (tmp_path / low.name).unlink()
    assert not has_weights(fast, tmp_path)


def test_no_driver_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert served.gpu_memory_gib() == []


@pytest.mark.parametrize(
    ("script", "found"), [("echo 24564; echo 81559", [23.988, 79.648]), ("exit 9", []), ("echo; exit 0", [])]
)
def test_the_driver_is_asked_for_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, found: list[float]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert served.gpu_memory_gib() == pytest.approx(found, abs=0.001)


def send(server: Server, **given: Any) -> str:
    values = {**SHORT, **given}
    answer = httpx.post(f"{server.base_url}/apps/run", json={"app": APP, "input": values})
    return answer.raise_for_status().json()["data"]["id"]


def upload(server: Server, path: Path) -> str:
    slot = httpx.post(f"{server.base_url}/files", json={"files": [{"filename": path.name}]}).json()["data"][0]
    httpx.put(slot["upload_url"], content=path.read_bytes()).raise_for_status()
    return slot["uri"]


def ended(server: Server, task_id: str, seconds: float = 120) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        task = httpx.get(f"{server.base_url}/tasks/{task_id}").raise_for_status().json()["data"]
        if task["status"] in (10, 11, 12):
            return task
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s in vain for {task_id}")


@pytest.mark.slow
def test_one_worker_runs_each_job_with_its_own_model_and_fails_those_of_a_set_that_is_gone(
    tmp_path: Path, first_frame: Path
) -> None:
    settings = {"WANBOX_HEARTBEAT_S": "0.3", "WANBOX_HEARTBEAT_TIMEOUT_S": "1"}
    data = tmp_path / "data"
    gone, kept = make_job(model="wan9"), make_job(model="tiny", input=SHORT)
    with open_queue(make_settings(data, models="tiny,wan9")) as left:
        left.submit(gone)
        left.submit(kept)
    with running_server(data, "--models", "tiny-ti2v,tiny", settings=settings) as server:
        (worker,) = httpx.get(f"{server.base_url}/readyz").json()["workers"]
        assert worker["models"] == ["tiny-ti2v", "tiny"]
        frame = send(server, first_frame=upload(server, first_frame))
        clip = upload(server, make_clip(tmp_path / "a.mp4", (320, 240), 1.9, 10))
        continued = send(server, first_clip=clip, duration=3)
        extras = [ended(server, task)["output"]["output_meta"]["outputs"][0]["extra"] for task in (frame, continued)]
        assert [extra["model"] for extra in extras] == ["tiny-ti2v", "tiny"]
        assert "does not take it" in extras[1]["passed_over"]["tiny-ti2v"]
        failed = ended(server, gone.id)
        assert (failed["status"], failed["error"]) == (
            11,
            "model wan9 is not served any more; this server has tiny-ti2v, tiny: send it anew",
        )
        assert ended(server, kept.id)["status"] == 10
