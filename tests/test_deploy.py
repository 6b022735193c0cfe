"""Dockerfile and compose.yaml, as far as they can be judged without a container engine."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import Any

import pytest
import yaml

from server_process import ROOT
from wan_server.settings import PREFIX, Settings

VARIABLES = {PREFIX + field.upper() for field in Settings.model_fields}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def test_every_variable_is_a_setting(services: dict[str, Any]):
    named = {name for service in services.values() for name in service["environment"]} - {
        "POSTGRES_USER",
        "POSTGRES_PASSWORD",
        "POSTGRES_DB",
    }
    assert named | set(re.findall(rf"\b({PREFIX}\w+)=", DOCKERFILE)) <= VARIABLES


def test_front_end_and_worker_share_database_and_files(services: dict[str, Any]):
    server, worker = services["server"], services["worker"]
    assert server["command"] == ["serve", "--no-worker"]
    assert worker["command"] == ["worker"]
    url = "WANBOX_DATABASE_URL"
    assert server["environment"][url] == worker["environment"][url]
    assert server["volumes"] == worker["volumes"]
    assert server["volumes"][0].endswith(re.search(r"WANBOX_DATA_DIR=(\S+)", DOCKERFILE)[1])  # pyright: ignore[reportOptionalSubscript]


def test_secrets_come_from_outside(services: dict[str, Any]):
    """They must be given: compose stops when they are not."""
    assert services["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    assert services["server"]["environment"]["WANBOX_API_KEYS"].startswith("${WANBOX_API_KEYS:?")
    assert "${POSTGRES_PASSWORD:?" in services["worker"]["environment"]["WANBOX_DATABASE_URL"]


def test_the_worker_reserves_a_gpu(services: dict[str, Any]):
    devices = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "deploy" not in services["server"]


def test_the_image_does_not_run_as_root_and_checks_its_health():
    user = DOCKERFILE.index("\nUSER wanbox")
    assert DOCKERFILE.index('\nRUN pip install -c constraints.txt ".[s3]"') < user < DOCKERFILE.index("\nENTRYPOINT")
    assert "/healthz" in DOCKERFILE[DOCKERFILE.index("HEALTHCHECK") :]


def test_what_the_image_copies_reaches_the_build():
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert ignore[0] == "*"
    let_through = [pattern[1:] for pattern in ignore if pattern.startswith("!")]
    assert sorted(copied) == sorted(let_through)
    assert not any(fnmatch(".env", pattern) for pattern in let_through)
