"""Each touch of Flower's private parts is where it was, with what is used of it; and nothing touches one elsewhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from feddusss import flower
from feddusss.flower import TOUCHES, Touch

ROOT = Path(__file__).parent.parent.parent
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.simulation"}
FILES = [
    path
    for room in ("benchmarks", "client", "configs", "dusss_core", "feddusss", "server", "sites")
    for path in sorted((ROOT / room).rglob("*.py"))
    if path != ROOT / "feddusss" / "flower.py"
]


def problem(name: str, touch: Touch) -> str:
    """What is not as it was; empty if nothing."""
    try:
        place = getattr(flower, name)
    except (ImportError, AttributeError) as error:
        return f"is gone: {error}"
    if touch.parameters is not None and (found := takes(place)) != touch.parameters:
        return f"takes {found}, and not {touch.parameters}"
    if lacking := [used for used in (*touch.uses, *touch.replaced) if not has(place, used)]:
        return f"has no {', '.join(lacking)} any more"
    for function, parameters in touch.takes.items():
        if (found := takes(getattr(place, function))) != parameters:
            return f"{function} takes {found}, and not {parameters}"
    source = inspect.getsource(place) if touch.words else ""
    return "".join(f"does not say {words!r} any more. " for words in touch.words if words not in source)


def takes(function) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def has(place, name: str) -> bool:
    """An attribute of a class, a module or a message; also one that an instance alone has."""
    absent = object()
    if inspect.getattr_static(place, name, absent) is not absent:  # to ask some of them for it is an error
        return True
    if (message := getattr(place, "DESCRIPTOR", None)) is not None:
        return name in message.fields_by_name
    return inspect.isclass(place) and any(
        f"self.{name}" in inspect.getsource(kind) for kind in place.__mro__ if kind.__module__.startswith("flwr.")
    )


@pytest.mark.parametrize("name", TOUCHES)
def test_flower_still_has(name):
    assert not (told := problem(name, TOUCHES[name])), f"flower.{name} ({TOUCHES[name].module}) {told}"


@pytest.mark.parametrize(
    "changed",
    [
        Touch("flwr.supercore.no_such_module"),
        Touch("flwr.supercore.date", "no_such_name"),
        Touch("flwr.supercore.date", "now", parameters=("zone",)),
        Touch("flwr.proto.runtime_pb2", "AcquireTaskRequest", uses=("no_such_field",)),
        Touch("flwr.supernode.nodestate.in_memory_nodestate", "InMemoryNodeState", uses=("no_such_method",)),
        Touch("flwr.supernode.start_client_internal", "*", replaced=("no_such_function",)),
        Touch("flwr.supernode.start_client_internal", "*", takes={"_push_messages": ("state",)}),
        Touch("flwr.supercore.retry.http_retry", "*", words=("no such words",)),
    ],
    ids=lambda touch: f"{touch.module}.{touch.name}",
)
def test_a_touch_that_flower_has_changed_is_told_by_its_name(monkeypatch, changed):
    monkeypatch.setitem(TOUCHES, "changed", changed)
    assert problem("changed", changed)


def test_nothing_touches_a_private_part_of_flower_elsewhere():
    private = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            private += [
                f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
                for name in names
                if name.partition(".")[0] == "flwr" and name not in PUBLIC
            ]
    assert not private, "\n".join(["touch it in feddusss/flower.py:", *private])


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_what_is_imported_from_a_public_module_is_handed_out_by_it(module):
    handed_out = set(importlib.import_module(module).__all__)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == module:
                taken = {alias.name for alias in node.names} - {"strategy"}
                assert taken <= handed_out, f"{path.relative_to(ROOT)}: {sorted(taken - handed_out)}"


def test_every_touch_is_used_and_every_use_is_one():
    given, of_objects = set(), {"MessageEntry", "InMemoryNodeState", "SqlLinkState", "HttpGrid"}
    told = {name for name, touch in TOUCHES.items() if touch.words}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "flower":
                given.add(node.attr)
    helpers = {name for name in given if name in vars(flower)}
    assert given - helpers == set(TOUCHES) - of_objects - told - {"ApiErrorCode"}


def test_numbers_that_are_known_by_heart_are_flowers():
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    from client.preflight import network, registration
    from server.rounds import replies
    from server.simulation import inprocess

    assert (network.MOST_AHEAD_S, network.MOST_BEHIND_S) == (SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE)
    assert flower.ErrorCode.NODE_UNAVAILABLE == replies._NODE_UNAVAILABLE
    assert flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION == inprocess.RAISED
    assert flower.ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED == registration._UNKNOWN == 2004
    assert replies.TOO_LARGE not in {
        value for name, value in vars(flower.ErrorCode).items() if isinstance(value, int) and not name.startswith("_")
    }


def test_the_range_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["ray"]]
    assert [one.partition(">")[2] for one in asked if one.startswith("flwr")] == [flower.requirement()[1:]] * 2
    (first, least), (last, most) = flower.RANGE
    here = tuple(map(int, version("flwr").split(".")[:2]))
    assert (first, least) <= here <= (last, most)


def test_ours_stands_in_only_where_flower_has_something(monkeypatch):
    from flwr.supernode import start_client_internal

    monkeypatch.setattr(start_client_internal, "_push_messages", start_client_internal._push_messages)
    before = start_client_internal._push_messages
    assert flower.stand_in("supernode", "_push_messages", print) is before
    assert start_client_internal._push_messages is print
    with pytest.raises(ValueError, match="not among what is replaced"):
        flower.stand_in("supernode", "_insert_message", print)
    monkeypatch.delattr(start_client_internal, "_push_messages")
    with pytest.raises(flower.Changed, match="_push_messages"):
        flower.stand_in("supernode", "_push_messages", print)
    with pytest.raises(AttributeError, match="no touch"):
        flower.nothing  # noqa: B018
