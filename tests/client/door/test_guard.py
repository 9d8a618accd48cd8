"""No code is pushed to a hospital: a bundle that is not the release's own is refused before it is unpacked."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import zipfile

import pytest

from client.door.guard import guard_supernode, refusal
from feddusss.bundle import release_bundle, write_app
from tests.deployment import Client, SuperLink, write_data


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, text in files.items():
            bundle.writestr(name, text)
    return buffer.getvalue()


def judged(content: bytes, announced: str | None = None) -> str | None:
    return refusal(content, announced or hashlib.sha256(content).hexdigest())


def test_the_releases_own_bundle_is_accepted():
    assert judged(release_bundle()[0]) is None


def test_a_bundle_with_another_file_is_refused_and_the_file_named():
    assert "client/app.py" in judged(zipped(**{"pyproject.toml": "", "client/app.py": "print()"}))


def test_a_bundle_of_another_release_is_refused():
    assert "release" in judged(zipped(**{"pyproject.toml": '[project]\nname = "feddusss"'}))


def test_a_bundle_under_another_name_is_refused():
    assert judged(release_bundle()[0], "0" * 64)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip" * 100])
def test_what_is_no_bundle_is_refused(content):
    assert "not a bundle" in judged(content)


def test_flower_still_receives_bundles_where_the_guard_stands():
    """Fails when another release of Flower moves it; then client/door/guard.py must follow."""
    from flwr.supernode import start_client_internal as supernode

    receive = inspect.signature(supernode._pull_and_store_message).parameters
    assert {"state", "object_store", "receive", "get_fab"} <= set(receive)
    source = inspect.getsource(supernode._pull_and_store_message)
    # the bundle is fetched by the function that is handed in, and nothing is done with it before
    assert "fab = get_fab(run_info.fab_hash, run_id)" in source
    assert source.index("get_fab(") < source.index("get_fused_config_from_fab(") < source.index("store_fab(")
    assert "_pull_and_store_message(" in inspect.getsource(supernode.start_client_internal)
    assert list(inspect.signature(supernode._insert_message).parameters) == ["msg", "state", "store"]


def test_without_the_place_for_the_guard_nothing_starts(monkeypatch):
    from flwr.supernode import start_client_internal as supernode

    monkeypatch.delattr(supernode, "_pull_and_store_message")
    with pytest.raises(RuntimeError, match="Flower"):
        guard_supernode(lambda *_: None, lambda *_: None)


CODE = """
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server, client = ServerApp(), ClientApp()

@server.main()
def main(grid, context):
    nodes = list(grid.get_node_ids())
    for reply in grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes], timeout=60):
        told = reply.error.reason if reply.has_error() else "it answered"
        Path({told!r}).write_text(told)

@client.query()
def query(message, context):
    Path({ran!r}).touch()
    return Message(RecordDict(), reply_to=message)

Path({imported!r}).write_text(__file__)
"""


def bundle_with_code(folder) -> bytes:
    """The release's bundle with one more file, which says where it ran."""
    from flwr.cli.build import build_fab_from_disk

    app = write_app(folder / "feddusss")
    places = {name: str(folder / name) for name in ("told", "ran", "imported")}
    (app / "pushed.py").write_text(CODE.format(**places))
    text = (app / "pyproject.toml").read_text()
    text = text.replace("server.app:app", "pushed:server").replace("client.app:app", "pushed:client")
    (app / "pyproject.toml").write_text(text)
    return build_fab_from_disk(app)


@pytest.mark.slow
def test_pushed_code_never_runs_at_a_hospital_and_both_sides_are_told(tmp_path):
    write_data(tmp_path, {"alder": 8})
    with SuperLink(tmp_path / "coordinator") as link, Client(tmp_path / "alder", link) as client:
        client.start()
        client.wait_for("connected")
        content = bundle_with_code(tmp_path)
        run = link.submit(content)
        link.wait_for_run(run, 120)
        # the coordinator's side ran it: the test would notice code that runs
        assert (tmp_path / "imported").exists()
        assert "takes no code" in (tmp_path / "told").read_text() and "pushed.py" in (tmp_path / "told").read_text()
        assert not (tmp_path / "ran").exists()
        assert not list(client.state_dir.rglob("pushed.py"))
        client.wait_for("refused: this site takes no code")
        record = [json.loads(line) for line in (client.state_dir / "audit.jsonl").read_text().splitlines()][-1]
        assert record["event"] == "bundle refused" and "pushed.py" in json.dumps(record)
        assert hashlib.sha256(content).hexdigest() in json.dumps(record)
