"""The generated messages are those of the ``.proto``, and those are the field's."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.remote.wire import config_pb2, generate, service_pb2

NUMBERS = {
    "ClientGetConfigsRequest": {"client": 1, "cached_target_files": 2},
    "ClientGetConfigsResponse": {
        "roots": 1, "targets": 2, "target_files": 3, "client_configs": 4, "config_status": 5,
    },
    "File": {"path": 1, "raw": 2},
    "TargetFileMeta": {"path": 1, "length": 2, "hashes": 3},
    "TargetFileHash": {"algorithm": 1, "hash": 3},
    "Client": {
        "state": 1, "id": 2, "products": 3, "is_tracer": 6, "client_tracer": 7, "is_agent": 8, "client_agent": 9,
        "last_seen": 10, "capabilities": 11, "is_updater": 14, "client_updater": 15,
    },
    "ClientState": {
        "root_version": 1, "targets_version": 2, "config_states": 3, "has_error": 4, "error": 5,
        "backend_client_state": 6,
    },
    "ConfigState": {"id": 1, "version": 2, "product": 3, "apply_state": 4, "apply_error": 5},
    "ClientAgent": {"name": 1, "version": 2, "cluster_name": 3, "cluster_id": 4, "cws_workloads": 5},
}  # fmt: skip
"""As other implementations of this wire have them."""


def test_what_is_in_the_tree_is_what_the_compiler_makes(tmp_path: Path) -> None:
    made = generate.generate(tmp_path)
    assert [path.name for path in made] == [name for name in generate.MADE if (generate.HERE / name).exists()]
    for path in made:
        assert (generate.HERE / path.name).read_text() == path.read_text(), f"{path.name}: run the generator again"


@pytest.mark.parametrize("name", NUMBERS)
def test_field_numbers(name: str) -> None:
    fields = config_pb2.DESCRIPTOR.message_types_by_name[name].fields
    assert {field.name: field.number for field in fields} == NUMBERS[name]


def test_the_service() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["AgentSecure"]
    (method,) = service.methods
    assert (service.full_name, method.name) == ("datadog.api.v1.AgentSecure", "ClientGetConfigs")
    assert method.input_type is config_pb2.ClientGetConfigsRequest.DESCRIPTOR
    assert method.output_type is config_pb2.ClientGetConfigsResponse.DESCRIPTOR
