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
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model_index.json").touch()
    assert installed(TINY, tmp_path / "tiny") == "built in"


def test_random_weights_are_built_in(tmp_path: Path) -> None:
    assert installed(replace(TINY, weights_from="random"), tmp_path) == "built in"


def test_the_table_says_what_a_model_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    print_models(make_settings(tmp_path))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "first_frame, last_frame, first_clip, text alone" in lines["tiny"]
    assert "text alone" not in lines["wan2.2-i2v-a14b"]
    assert str(tmp_path / "weights" / "wan2.2-i2v-a14b") in lines["wan2.2-i2v-a14b"]
