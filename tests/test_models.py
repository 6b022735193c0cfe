"""What `wanbox models` says of weights that need no download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from queue_fixtures import make_settings
from wan_pipelines.profile import load_profile
from wan_server.models import installed, print_models
from wan_server.settings import find_config_dir

TINY = load_profile("tiny", find_config_dir())


def test_shipped_weights_are_built_in_unless_the_installation_lacks_them(tmp_path: Path) -> None:
    assert installed(TINY, tmp_path / "tiny") == f"no: {tmp_path / 'tiny'} is missing from the installation"
    (tmp_path / "tiny" / "vae").mkdir(parents=True)
    (tmp_path / "tiny" / "vae" / "diffusion_pytorch_model.safetensors").touch()
    assert installed(TINY, tmp_path / "tiny") == "built in"


def test_random_weights_are_built_in(tmp_path: Path) -> None:
    assert installed(replace(TINY, weights_from="random"), tmp_path) == "built in"


def test_the_table_says_what_a_model_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    print_models(make_settings(tmp_path))
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "first_frame, last_frame, first_clip, text alone" in lines["tiny"]
    assert "text alone" not in lines["wan2.2-i2v-a14b"]
    assert "wanbox weights get wan2.2-i2v-a14b:fast (128 GB)" in lines["wan2.2-i2v-a14b:fast"]
    assert "last_frame (needed)" in lines["wan2.1-flf2v-14b-720p"]
    assert "first_frame, last_frame, driving_audio (needed)" in lines["wan2.2-s2v-14b"]
    assert f"{tmp_path / 'weights'}/<model>" in shown


def test_the_table_is_followed_by_what_the_configured_set_can_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    print_models(make_settings(tmp_path, models="wan2.2-ti2v-5b,tiny"))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "This server is configured for wan2.2-ti2v-5b, tiny (WANBOX_MODELS):" in lines
    assert "first_frame: wan2.2-ti2v-5b up to 15 s, tiny up to 15 s" in lines
    assert "first_clip: tiny up to 15 s behind a clip of 2 s" in lines
    assert any(line.startswith("first_frame + driving_audio: ") and "listens" in line for line in lines)


def test_a_set_that_cannot_do_something_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    print_models(make_settings(tmp_path, models="tiny-ti2v"))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "first_clip: no: input.first_clip: model tiny-ti2v does not take it (it takes first_frame)" in lines
