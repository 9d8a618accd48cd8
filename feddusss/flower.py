"""Every touch of Flower's private parts, and nothing else in the project imports one (tests/feddusss/test_flower.py).

Public is what `flwr.app`, `flwr.clientapp`, `flwr.serverapp` (with its strategies) and `flwr.simulation` hand out. All
else may move with a minor release of Flower, so each touch stands in TOUCHES with what is used of it, and has a test of
its own that fails by its name. Use it as `flower.NAME`: its module is imported when it is asked for.

    from feddusss import flower

    request = flower.AcquireTaskRequest(...)
    flower.stand_in("supernode", "_push_messages", ours)
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

RANGE = (1, 41), (1, 42)
"""First and last minor release of Flower that every touch was tested with. A study needs one and the same everywhere:
minor releases differ in what they send, and refuse each other."""


@dataclass(frozen=True)
class Touch:
    """What is used of a private part of Flower."""

    module: str
    """Where it is."""
    name: str = ""
    """What it is called there; empty: as here."""
    parameters: tuple[str, ...] | None = None
    """Of a function: all that it takes, in order; None: it is not called."""
    uses: tuple[str, ...] = ()
    """Names on it: attributes of a class or module, fields of a message."""
    replaced: tuple[str, ...] = ()
    """Names on it in the place of which something of ours stands: `stand_in`."""
    takes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Function on it -> all that it takes, in order."""
    words: tuple[str, ...] = ()
    """Of a module: what it says, and is known by."""


def _of(module: str, *names: str, **more: Any) -> dict[str, Touch]:
    return {name: Touch(module, **more) for name in names}


_SERDE, _INFLATABLE = "flwr.common.serde", "flwr.supercore.inflatable"
TOUCHES: dict[str, Touch] = {
    # A site's SuperNode: its loop, with which Flower's own command works (client/node, client/door/guard.py).
    "supernode": Touch(
        "flwr.supernode.start_client_internal",
        "*",
        uses=("_insert_message",),
        replaced=("_pull_and_store_message", "_push_messages", "pull_objects", "time"),
        takes={
            "_pull_and_store_message": (
                "state", "object_store", "node_config", "receive", "get_run", "get_fab", "pull_object",
                "confirm_message_received", "trusted_entities",
            ),
            "_push_messages": ("state", "object_store", "send", "push_object"),
            "pull_objects": ("object_ids", "pull_object_fn", "max_concurrent_pulls", "max_time", "max_tries_per_object",
                             "initial_backoff", "backoff_cap"),
            "_insert_message": ("msg", "state", "store"),
        },
    ),
    "flower_supernode": Touch("flwr.supernode.cli.flower_supernode", parameters=()),
    "InMemoryNodeState": Touch(
        "flwr.supernode.nodestate.in_memory_nodestate",
        uses=(
            "get_run", "get_tasks", "finish_task", "get_node_id", "delete_messages", "record_message_processing_start",
            "record_message_processing_end",
        ),
    ),
    "MessageEntry": Touch("flwr.supernode.nodestate.in_memory_nodestate", parameters=("message", "is_retrieved")),
    "Status": Touch("flwr.common.constant", uses=("PENDING", "FINISHED")),
    "SubStatus": Touch("flwr.common.constant", uses=("COMPLETED", "FAILED")),
    "ErrorCode": Touch(
        "flwr.common.constant",
        uses=("CLIENT_APP_RAISED_EXCEPTION", "CLIENT_APP_CRASHED", "INVALID_FAB", "MESSAGE_UNAVAILABLE",
              "NODE_UNAVAILABLE"),
    ),
    "RunNotRunningException": Touch("flwr.supercore.run"),
    "update_console_handler": Touch("flwr.supercore.logger", parameters=("level", "timestamps", "colored")),
    # What the SuperNode says on its way out, by which a person is told why (client/node/ending.py, supernode.py).
    "reconnection": Touch(
        "flwr.supercore.retry.http_retry", "*", words=("Connection attempt failed", "Connection successful")
    ),
    "connection": Touch(
        "flwr.supernode.fleet_http_connection",
        "*",
        words=("Failed to initialize the connection to the SuperLink.\\n", "[code: {flower_error.code}]"),
    ),
    "goodbye": Touch("flwr.supernode.start_client_internal", "*", words=("SuperNode terminated gracefully.",)),
    "version": Touch("flwr.supercore.dependencies.version", "*", words=("Runtime version compatibility",)),
    "ApiErrorCode": Touch("flwr.supercore.error", uses=("FLEET_NODE_ACTIVATION_FAILED",)),
    # A site's worker, which asks the SuperNode for work over its local API.
    "pull_task_input": Touch("flwr.supernode.runtime.run_clientapp", parameters=("client",)),
    "push_message": Touch("flwr.supernode.runtime.run_clientapp", parameters=("client", "message", "context")),
    "push_task_output": Touch(
        "flwr.supernode.runtime.run_clientapp", parameters=("client", "context", "sub_status", "details")
    ),
    "RuntimeHttpClient": Touch(
        "flwr.supercore.runtime",
        uses=("from_server_address", "AcquireTask", "PushTaskOutput", "SendTaskHeartbeat", "PullMessages", "close"),
    ),
    "HeartbeatSender": Touch("flwr.supercore.heartbeat", uses=("start", "stop")),
    **_of("flwr.supercore.interceptors", "RuntimeTokenHttpInterceptor", "RuntimeVersionHttpInterceptor"),
    "SuperExecAuthHttpInterceptor": Touch(
        "flwr.supercore.interceptors", parameters=("master_secret", "protected_methods")
    ),
    "AcquireTaskRequest": Touch("flwr.proto.runtime_pb2", uses=("supported_task_types",)),
    "PushTaskOutputRequest": Touch("flwr.proto.runtime_pb2", uses=("sub_status", "details")),
    "SendTaskHeartbeatRequest": Touch("flwr.proto.runtime_pb2"),
    # What a site says to a SuperLink beside Flower's own command: that it left, and whether its key is known.
    "FleetHttpClient": Touch("flwr.supernode.fleet_http_client", uses=("from_server_address", "DeactivateNode")),
    "NodeAuthHttpInterceptor": Touch("flwr.supernode.node_auth_http_interceptor"),
    "DeactivateNodeRequest": Touch("flwr.proto.fleet_pb2", uses=("node_id",)),
    "ActivateNodeRequest": Touch("flwr.proto.fleet_pb2", uses=("public_key", "heartbeat_interval")),
    "TIMESTAMP_HEADER": Touch("flwr.common.constant"),
    **_of(
        "flwr.supercore.constant",
        "FLEET_HTTP_PUBLIC_KEY_HEADER", "FLEET_HTTP_SIGNATURE_HEADER", "VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY",
    ),
    "now": Touch("flwr.supercore.date", parameters=()),
    "public_key_to_bytes": Touch("flwr.supercore.primitives.asymmetric", parameters=("public_key",)),
    "sign_message": Touch("flwr.supercore.primitives.asymmetric", parameters=("private_key", "message")),
    "PROTOBUF_MEDIA_TYPE": Touch("flwr.supercore.protobuf.constants"),
    "RuntimeVersionMetadata": Touch(
        "flwr.supercore.runtime_version_compatibility", uses=("from_local_component", "as_metadata")
    ),
    # The SuperLink: its command, its database, and its handlers of what hospitals send (server/deployment).
    "flower_superlink": Touch("flwr.superlink.cli", parameters=()),
    "SuperLinkLifespan": Touch(
        "flwr.superlink.cli.flower_superlink",
        replaced=("_start_superexec_if_needed",),
        takes={"_start_superexec_if_needed": ("self",)},
    ),
    "sql_mixin": Touch("flwr.supercore.sql_mixin", "*", replaced=("SQLITE_PRAGMAS",)),
    "sql_corestate": Touch(
        "flwr.supercore.corestate.sql_corestate",
        "*",
        replaced=("HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_PATIENCE"),
        uses=("SqlCoreState",),
    ),
    "fleet_handlers": Touch(
        "flwr.superlink.servicer.fleet.fleet_handlers",
        "*",
        replaced=("pull_messages", "push_messages", "push_object"),
        takes={
            "pull_messages": ("request", "state", "store"),
            "push_messages": ("request", "state"),
            "push_object": ("request", "state"),
        },
    ),
    "SqlLinkState": Touch(
        "flwr.server.superlink.linkstate.sql_linkstate",
        uses=(
            "get_valid_message_ins", "start_session", "preregister_object_tree", "store_message_and_object_tree",
            "store_object", "acknowledge_node_heartbeat", "_cleanup_push_session", "object_store",
        ),
    ),
    **_of("flwr.supercore.object_store.sql_object_store", "SqlObjectStore", uses=("session", "get")),
    **_of("flwr.supercore.object_store.sql_object_store", "StoredObject", uses=("object_id", "content")),
    "HEARTBEAT_DEFAULT_INTERVAL": Touch("flwr.common.constant"),
    "PushObjectResponse": Touch("flwr.proto.message_pb2", uses=("stored",)),
    "metadata_from_proto": Touch("flwr.common.serde_utils", parameters=("metadata_proto",)),
    "make_message": Touch("flwr.app.message", parameters=("metadata", "content", "error")),
    # The Control API, by which studies are started and sites let in (server/deployment/control.py).
    "ControlHttpClient": Touch(
        "flwr.supercore.control",
        uses=(
            "from_server_address", "StartRun", "StopRun", "ListRuns", "ListNodes", "RegisterNode", "UnregisterNode",
            "close",
        ),
    ),
    "StartRunRequest": Touch("flwr.proto.control_pb2", uses=("fab", "override_config")),
    "StopRunRequest": Touch("flwr.proto.control_pb2", uses=("run_id",)),
    "ListRunsRequest": Touch("flwr.proto.control_pb2", uses=("run_id",)),
    "ListNodesRequest": Touch("flwr.proto.control_pb2"),
    "RegisterNodeRequest": Touch("flwr.proto.control_pb2", uses=("public_key", "name")),
    "UnregisterNodeRequest": Touch("flwr.proto.control_pb2", uses=("node_id",)),
    "NodeInfo": Touch(
        "flwr.proto.node_pb2",
        uses=("node_id", "name", "status", "public_key", "online_until", "heartbeat_interval", "last_activated_at",
              "last_deactivated_at"),
    ),
    "Fab": Touch("flwr.supercore.fab", parameters=("hash_str", "content", "verifications")),
    "FlowerError": Touch("flwr.supercore.error", uses=("from_json",)),
    "fab_to_proto": Touch(_SERDE, parameters=("fab",)),
    "user_config_to_proto": Touch(_SERDE, parameters=("user_config",)),
    "user_config_from_proto": Touch(_SERDE, parameters=("proto",)),
    "build_fab_from_disk": Touch("flwr.cli.build", parameters=("app",)),
    # How the coordinator fetches answers (server/deployment/grid.py), and which grid it has.
    "HttpGrid": Touch("flwr.superlink.grid.http_grid", uses=("_runtime_client", "node", "run", "set_run")),
    "InMemoryGrid": Touch("flwr.superlink.grid.inmemory_grid"),
    "PullAppMessagesRequest": Touch("flwr.proto.runtime_pb2", uses=("message_ids",)),
    "ConfirmMessageReceivedRequest": Touch("flwr.proto.message_pb2", uses=("node", "run_id", "message_object_id")),
    **_of(f"{_INFLATABLE}.inflatable_utils", "ObjectPullError", "ObjectUnavailableError"),
    "inflate_object_from_contents": Touch(
        f"{_INFLATABLE}.inflatable_utils",
        parameters=("object_id", "object_contents", "keep_object_contents", "objects"),
    ),
    "push_object_contents_from_iterable": Touch(
        f"{_INFLATABLE}.inflatable_utils", parameters=("object_contents", "push_object_fn", "max_concurrent_pushes")
    ),
    "make_pull_object_fn_protobuf": Touch(
        f"{_INFLATABLE}.inflatable_protobuf_utils", parameters=("pull_object_protobuf", "node", "run_id")
    ),
    "iterate_object_tree": Touch(f"{_INFLATABLE}.inflatable_object", parameters=("tree",)),
    "get_all_nested_objects": Touch(f"{_INFLATABLE}.inflatable_object", parameters=("obj",)),
    "get_object_tree": Touch(f"{_INFLATABLE}.inflatable_object", parameters=("obj",)),
    # Messages and runs that the project makes itself, and arithmetic that no strategy hands out.
    "trim_mean": Touch("flwr.serverapp.strategy.fedtrimmedavg", parameters=("array", "cut_fraction")),
    "Metadata": Touch("flwr.app.metadata", uses=("message_id", "reply_to_message_id")),
    "Run": Touch("flwr.supercore.run", uses=("create_empty",)),
    "TaskIdentity": Touch("flwr.supercore.task_identity", uses=("task_id", "run_id", "node_id")),
    "RecordDictProto": Touch("flwr.proto.recorddict_pb2", "RecordDict", uses=("FromString", "SerializeToString")),
    "recorddict_from_proto": Touch(_SERDE, parameters=("recorddict_proto",)),
    "recorddict_to_proto": Touch(_SERDE, parameters=("recorddict",)),
}  # fmt: skip


def requirement() -> str:
    """The range as pip and pyproject.toml have it."""
    (first, least), (last, most) = RANGE
    return f">={first}.{least},<{last}.{most + 1}"


class Changed(RuntimeError):
    """This release of Flower has moved or changed what is used of it."""


def __getattr__(name: str) -> Any:
    if name not in TOUCHES:
        raise AttributeError(f"feddusss.flower has no touch named {name!r}")
    touch = TOUCHES[name]
    module = importlib.import_module(touch.module)
    return module if touch.name == "*" else getattr(module, touch.name or name)


def stand_in(touched: str, name: str, ours: Any) -> Any:
    """Put something of ours in the place of what Flower has, in this process; returns Flower's.

    Raises:
        Changed: Flower has nothing there, so that ours would never be asked.
    """
    place = __getattr__(touched)
    if name not in TOUCHES[touched].replaced:
        raise ValueError(f"{touched}.{name} is not among what is replaced")
    if not hasattr(place, name):
        raise Changed(f"{TOUCHES[touched].module} has no {name} any more; install a release of Flower in the range")
    flowers = getattr(place, name)
    setattr(place, name, ours)
    return flowers


def name_message(message: Any, name: str) -> None:
    """Give a message its name, which Flower gives where it sends one, and lets nobody else set."""
    message.metadata.__dict__["_message_id"] = name


def runtime_client(grid: Any) -> Any:
    """The connection by which a grid of real sites asks its SuperLink."""
    return grid._runtime_client
