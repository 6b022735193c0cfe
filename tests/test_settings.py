"""Settings: typed, frozen, and loud about what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan_server.settings import Settings, SettingsError, as_environment, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WANBOX_{name.upper()}", raising=False)


def test_defaults_are_for_one_machine() -> None:
    settings = load_settings()
    assert settings.is_loopback
    assert settings.database == f"sqlite:///{Path('data').resolve()}/wanbox.db"
    assert (settings.configs / "models" / "tiny.toml").is_file()


def test_the_command_line_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANBOX_PORT", "9000")
    assert load_settings(port=None).port == 9000
    assert load_settings(port=9001).port == 9001


def test_unknown_variables_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANBOX_PROT", "9000")
    with pytest.raises(SettingsError, match="WANBOX_PROT: is not a setting"):
        load_settings()


def test_bad_values_are_named_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANBOX_PORT", "ninety")
    monkeypatch.setenv("WANBOX_DEVICE", "tpu")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "WANBOX_PORT" in str(caught.value)
    assert "WANBOX_DEVICE" in str(caught.value)


def test_a_heartbeat_slower_than_its_timeout_is_refused() -> None:
    with pytest.raises(SettingsError, match="three times heartbeat_s"):
        load_settings(heartbeat_s=10, heartbeat_timeout_s=20)


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANBOX_API_KEYS", "one, two")
    assert load_settings().api_keys == ("one", "two")


def test_models_are_a_list_and_model_is_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().served == ("tiny",)
    monkeypatch.setenv("WANBOX_MODEL", "tiny-ti2v")
    assert load_settings().served == ("tiny-ti2v",)
    monkeypatch.setenv("WANBOX_MODEL", "")
    monkeypatch.setenv("WANBOX_MODELS", "wan2.2-i2v-a14b:fast, tiny")
    assert load_settings().served == ("wan2.2-i2v-a14b:fast", "tiny")


def test_both_names_of_the_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANBOX_MODEL", "tiny")
    monkeypatch.setenv("WANBOX_MODELS", "tiny-ti2v")
    monkeypatch.setenv("WANBOX_PROMPT_EXTEND_KEY", "secret")
    with pytest.raises(SettingsError, match=r"^WANBOX_MODELS: is given twice, the other time as model$"):
        load_settings()
    assert load_settings(models="tiny").served == ("tiny",)


def test_no_model_is_refused() -> None:
    with pytest.raises(SettingsError, match="WANBOX_MODELS: must name at least one profile"):
        load_settings(models=" , ")


def test_the_models_of_the_command_line_reach_a_child_in_any_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANBOX_MODEL", "wan2.2-ti2v-5b")
    settings = load_settings(models="tiny-ti2v,tiny")
    for name, value in as_environment({"models": settings.models}).items():
        monkeypatch.setenv(name, value)
    assert load_settings().served == ("tiny-ti2v", "tiny")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box.example", False)],
)
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    assert load_settings(host=host).is_loopback is loopback


def test_what_was_given_becomes_variables_of_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"port": 1234, "models": None, "data_dir": Path("/somewhere")}
    environment = as_environment(given)
    assert environment == {"WANBOX_PORT": "1234", "WANBOX_DATA_DIR": "/somewhere"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().data_dir == Path("/somewhere")
