"""Generated requests for every operation of /openapi.json: no 5xx, and every answer is as documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from inferencesh import Inference
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from sdk_input import APP, later, request
from server_process import Server, running_server

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
#: the same requests in every run
REPEATABLE = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    verbosity=Verbosity.quiet,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
LIST_KEYS = ("cursor", "limit", "direction", "search", "filters", "sort", "fields", "preloads", "permissions")
COLUMNS = st.sampled_from(["status", "created_at", "id", "filename", "name"]) | SCALARS
OPERATORS = st.sampled_from(["eq", "in", "gt", "like", "contains", "is_null", "is_empty"]) | SCALARS
FILTERS = st.lists(st.fixed_dictionaries({"field": COLUMNS, "operator": OPERATORS, "value": JSON}), max_size=3)
LIST_BODIES = JSON | st.dictionaries(st.sampled_from(LIST_KEYS), JSON) | st.fixed_dictionaries({"filters": FILTERS})


@pytest.fixture(scope="module")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without a worker: a generated task is taken in, but nobody fetches what it names."""
    data_dir = tmp_path_factory.mktemp("fuzz") / "data"
    with running_server(data_dir, "--no-worker", ready="/healthz", settings={"WANBOX_MAX_QUEUE": "50"}) as running:
        yield running


@pytest.mark.parametrize("kind", ["valid", "valid for something that exists", "invalid"])
def test_no_request_makes_the_server_fail(front_end: Server, first_frame: Path, kind: str):
    # /readyz answers 503 as it should: there is no worker
    schema = schemathesis.openapi.from_url(f"{front_end.base_url}/openapi.json").exclude(path="/readyz")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) > 15
    mode = GenerationMode.NEGATIVE if kind == "invalid" else GenerationMode.POSITIVE
    names = what_exists(front_end, first_frame) if kind.endswith("exists") else {}
    what_deletes_comes_last = sorted(operations, key=lambda operation: operation.method == "delete")
    failures = [text for operation in what_deletes_comes_last for text in attack(operation, mode, names)]
    assert not failures, "\n\n".join(failures)


def what_exists(front_end: Server, first_frame: Path) -> dict[str, str]:
    """Path parameters that name an app, an ended task with a session, and a file."""
    client = Inference(api_key="any", base_url=front_end.base_url)
    task = client.run(request(first_frame, session="new", run_at=later(3600)), wait=False)
    assert isinstance(task, dict)
    client.cancel(task["id"])
    app = client._request("get", f"/apps/{APP}").data
    return {
        "task_id": task["id"],
        "session_id": task["session_id"],
        "file_id": client.upload_file(str(first_frame))["id"],
        "namespace": app["namespace"],
        "name": app["name"],
        "app_id": app["id"],
        "version_id": app["version_id"],
    }


def attack(operation: schemathesis.APIOperation, mode: GenerationMode, names: dict[str, str]) -> list[str]:
    """Sends generated requests. Returns what went wrong, with a curl line to repeat it."""

    @REPEATABLE
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        for name in case.path_parameters.keys() & names.keys():
            case.path_parameters[name] = names[name]
        case.call_and_validate(checks=CHECKS, headers={"Authorization": "Bearer any"}, timeout=20)

    try:
        send()
    except FailureGroup as group:
        return [f"{operation.label}: {group}"]
    except Unsatisfiable:  # an operation without parameters takes nothing that could be wrong
        assert mode is GenerationMode.NEGATIVE
    return []


@pytest.mark.parametrize("path", ["/tasks/list", "/apps/list", "/files/list"])
def test_a_list_takes_a_body_of_any_shape(front_end: Server, path: str):
    with httpx.Client(base_url=front_end.base_url) as client:

        @settings(REPEATABLE, max_examples=200)
        @given(body=LIST_BODIES)
        def send(body: Any) -> None:
            answer = client.post(path, json=body)
            assert answer.status_code in (200, 400, 422), answer.text

        send()
