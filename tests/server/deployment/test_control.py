"""What is asked of a SuperLink's Control API, and what its answers mean."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest

from dusss_core.errors import UserError
from server.deployment import control as module
from server.deployment.control import Connection, Control, ControlFailed, connected


class Answers:
    """A SuperLink that refuses to stop a run, as Flower does where it has ended."""

    def __init__(self, status):
        self.status = status

    def StopRun(self, request):
        answer = httpx.Response(412, json={"code": 0, "message": "Run is already finished."})
        raise httpx.HTTPStatusError("412", request=httpx.Request("POST", "http://here"), response=answer)

    def ListRuns(self, request):
        status = SimpleNamespace(status=self.status, sub_status="completed", details="")
        run = SimpleNamespace(run_id=request.run_id, override_config={}, status=status, pending_at="", starting_at="")
        return SimpleNamespace(run_dict={request.run_id: run})

    def close(self):
        pass


@pytest.fixture
def control():
    with Control(Connection("127.0.0.1:9")) as control:
        control._client.close()
        yield control


def test_a_run_that_ends_while_it_is_stopped_is_no_failure(control):
    control._client = Answers("finished")
    assert control.stop(4711) is False


def test_a_run_that_could_not_be_stopped_is_one(control):
    control._client = Answers("running")
    with pytest.raises(ControlFailed, match="412"):
        control.stop(4711)


@pytest.mark.parametrize(
    ("why", "code", "remedy"),
    [
        ("certificate verify failed: certificate has expired", "FD402", "renew-certificate"),
        ("certificate verify failed: certificate is not yet valid", "FD402", "clock"),
        ("[Errno 111] Connection refused", "FD401", "start.sh"),
    ],
)
def test_a_superlink_that_cannot_be_asked_is_told_with_what_mends_it(monkeypatch, tmp_path, why, code, remedy):
    def fails(request):
        raise httpx.ConnectError(why)

    monkeypatch.setattr(module, "find_connection", lambda coordinator: Connection("127.0.0.1:9"))
    with pytest.raises(UserError, match=why.split(":")[0].replace("[", r"\[")) as told, connected(tmp_path) as control:
        control._client.close()
        control._client = SimpleNamespace(ListRuns=fails, close=lambda: None)
        control.runs()
    assert told.value.code == code and remedy in told.value.remedy
