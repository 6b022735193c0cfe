"""The renderers of a worker: loaded in order, found by the name that a job carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from queue_fixtures import make_settings
from wan_pipelines.errors import CheckpointError
from wan_pipelines.profile import load_profile
from wan_server.renderers import Stopped, load_bars, load_renderers
from wan_server.served import served_profiles


def test_each_model_is_found_by_its_name(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, models="tiny-ti2v,tiny", checkpoint_every_s=7.0)
    renderers = load_renderers(settings, served_profiles(settings), "cpu", lambda: False)
    assert renderers.models == ("tiny-ti2v", "tiny")
    assert renderers.profile("tiny").name == renderers.of("tiny").profile.name == "tiny"
    assert renderers.of("tiny-ti2v").checkpoint_every_s == 7.0
    assert (tmp_path / "weights" / "tiny-ti2v").is_dir()


def test_a_stop_is_noticed_between_two_models(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, models="tiny,tiny-ti2v")
    with pytest.raises(Stopped):
        load_renderers(settings, served_profiles(settings), "cpu", lambda: True)
    assert not (tmp_path / "weights" / "tiny-ti2v").exists()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    profile = load_profile("wan2.2-ti2v-5b", make_settings(tmp_path).configs)
    with pytest.raises(CheckpointError, match=r"wan2\.2-ti2v-5b"):
        load_renderers(make_settings(tmp_path), [profile], "cpu", lambda: False)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_a_bar_for_each_part(monkeypatch, capsys, is_terminal):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1") if is_terminal else monkeypatch.delenv("FORCE_COLOR", raising=False)
    with load_bars() as on_part:
        on_part("vae", 1, 3)
        on_part("vae", 3, 3)
    shown = capsys.readouterr().err
    assert ("vae" in shown and "3/3" in shown) is is_terminal
