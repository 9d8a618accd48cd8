"""The register of the hospitals' keys, and how a SuperLink is made to agree with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager, nullcontext

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from dusss_core.errors import UserError
from server.__main__ import main
from server.deployment import control, registry
from server.deployment.control import ControlFailed, Node, SuperLinkAway, fingerprint
from server.deployment.folder import CoordinatorFolder
from server.deployment.registry import add_key, add_sites, load_registry, revoke, synchronise


class FakeSuperLink:
    """Keeps nodes as Flower 1.41 does: a key that was unregistered is hidden, and never accepted again."""

    def __init__(self):
        self.accepted: dict[str, Node] = {}
        self.dead: set[str] = set()
        self.refuse: str | None = None

    def nodes(self) -> list[Node]:
        return list(self.accepted.values())

    def register(self, name: str, public_key: bytes) -> int:
        key = fingerprint(public_key)
        if key in self.accepted or key in self.dead or name == self.refuse:
            raise ControlFailed("the SuperLink answered 412: Public key already in use.")
        self.accepted[key] = Node(100 + len(self.accepted) + len(self.dead), name, "registered", "", key)
        return self.accepted[key].id

    def unregister(self, node_id: int) -> None:
        (key,) = [key for key, node in self.accepted.items() if node.id == node_id]
        del self.accepted[key]
        self.dead.add(key)

    def names(self) -> list[str]:
        return sorted(node.name for node in self.accepted.values())


@pytest.fixture
def folder(tmp_path):
    made = CoordinatorFolder(tmp_path)
    add_sites(made, ["alder", "birch"])
    return made


def new_key(curve=None) -> str:
    key = ec.generate_private_key(curve or ec.SECP384R1())
    return key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH).decode() + " someone@hospital"


def status(folder: CoordinatorFolder) -> dict[str, str]:
    return {site.name: site.status for site in load_registry(folder).sites}


def test_a_key_goes_from_invited_to_registered_to_revoked(folder):
    superlink = FakeSuperLink()
    assert status(folder)["alder"] == "invited"
    add_key(folder, "alder", new_key())
    assert status(folder)["alder"] == "pending"
    assert synchronise(folder, superlink).registered == ["alder"]
    assert status(folder) == {"alder": "registered", "birch": "invited"}
    revoke(folder, "alder")
    assert synchronise(folder, superlink).unregistered == ["alder"]
    assert status(folder)["alder"] == "revoked" and not superlink.accepted


def test_renewing_one_site_leaves_the_others(folder):
    superlink = FakeSuperLink()
    for name in ("alder", "birch"):
        add_key(folder, name, new_key())
    synchronise(folder, superlink)
    before = load_registry(folder)
    fresh = add_key(folder, "alder", new_key(), renew=True)
    changes = synchronise(folder, superlink)
    assert (changes.registered, changes.unregistered) == (["alder"], ["alder"])
    after = load_registry(folder)
    assert after.site("birch") == before.site("birch")
    assert after.site("alder").key.fingerprint == fresh.fingerprint
    assert superlink.names() == ["alder", "birch"]
    # results that came under the old key still have a name
    assert set(after.names_by_node().values()) == {"alder", "birch"} and len(after.names_by_node()) == 3


def test_a_new_key_is_registered_before_the_old_one_goes(folder):
    superlink = FakeSuperLink()
    add_key(folder, "alder", new_key())
    synchronise(folder, superlink)
    add_key(folder, "alder", new_key(), renew=True)
    superlink.refuse = "alder"
    assert synchronise(folder, superlink).problems
    superlink.refuse = None
    assert synchronise(folder, superlink).registered == ["alder"]
    assert superlink.names() == ["alder"] and status(folder)["alder"] == "registered"


def test_synchronising_again_changes_nothing(folder):
    superlink = FakeSuperLink()
    add_key(folder, "alder", new_key())
    synchronise(folder, superlink)
    before = folder.register.read_bytes()
    changes = synchronise(folder, superlink)
    assert not (changes.registered or changes.unregistered or changes.problems)
    assert folder.register.read_bytes() == before


def test_a_lost_database_is_made_good(folder):
    add_key(folder, "alder", new_key())
    add_key(folder, "birch", new_key())
    synchronise(folder, FakeSuperLink())
    revoke(folder, "birch")
    empty = FakeSuperLink()
    assert synchronise(folder, empty).registered == ["alder"]
    assert empty.names() == ["alder"]


def test_a_crash_between_superlink_and_file_is_made_good(folder):
    superlink = FakeSuperLink()
    add_key(folder, "alder", new_key())
    before = folder.register.read_bytes()
    synchronise(folder, superlink)
    folder.register.write_bytes(before)
    changes = synchronise(folder, superlink)
    assert not changes.problems and status(folder)["alder"] == "registered"


def test_what_was_done_before_a_failure_is_remembered(folder):
    class Failing(FakeSuperLink):
        def register(self, name, public_key):
            if name == "birch":
                raise SuperLinkAway("gone")
            return super().register(name, public_key)

    for name in ("alder", "birch"):
        add_key(folder, name, new_key())
    with pytest.raises(SuperLinkAway):
        synchronise(folder, Failing())
    assert status(folder) == {"alder": "registered", "birch": "pending"}


def test_a_node_that_nobody_registered_here_is_reported(folder):
    superlink = FakeSuperLink()
    stranger = s.load_ssh_public_key(new_key().encode())
    superlink.register("stranger", stranger.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    (problem,) = synchronise(folder, superlink).problems
    assert "stranger" in str(problem) and superlink.names() == ["stranger"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("nonsense", "not a public key"),
        ("ssh-rsa AAAA x", "not a public key"),
        (new_key(ec.SECP256R1()), "not an EC P-384 key"),
        (
            ed25519.Ed25519PrivateKey.generate()
            .public_key()
            .public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
            .decode(),
            "not an EC P-384 key",
        ),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "must never leave"),
    ],
)
def test_only_p384_public_keys_are_taken(folder, key, message):
    with pytest.raises(UserError, match=message):
        add_key(folder, "alder", key)
    assert status(folder)["alder"] == "invited"


def test_no_key_serves_twice(folder):
    first, second = new_key(), new_key()
    add_key(folder, "alder", first)
    with pytest.raises(UserError, match="used by alder"):
        add_key(folder, "birch", first.rsplit(" ", 1)[0] + " another comment")
    with pytest.raises(UserError, match="this key already"):
        add_key(folder, "alder", first)
    add_key(folder, "alder", second, renew=True)
    with pytest.raises(UserError, match="never used again"):
        add_key(folder, "alder", first, renew=True)
    revoke(folder, "alder")
    with pytest.raises(UserError, match="never used again"):
        add_key(folder, "alder", second)
    add_key(folder, "alder", new_key())


def test_register_does_not_replace_a_key_and_renew_does_not_add_one(folder):
    with pytest.raises(UserError, match="server register alder"):
        add_key(folder, "alder", new_key(), renew=True)
    add_key(folder, "alder", new_key())
    with pytest.raises(UserError, match="server renew alder"):
        add_key(folder, "alder", new_key())


@pytest.mark.parametrize("renew", [False, True])
def test_a_key_that_says_it_is_another_sites_is_refused_and_not_burnt(folder, renew):
    bare = new_key().rsplit(" ", 1)[0]
    if renew:
        add_key(folder, "alder", new_key())
    with pytest.raises(UserError, match=r"says that it is birch's.*\n.*server register birch PUBKEY"):
        add_key(folder, "alder", f"{bare} birch\n", renew=renew)
    assert all(key.public_key != bare for site in load_registry(folder).sites for key in site.keys)
    add_key(folder, "birch", f"{bare} birch\n")


def test_a_key_with_its_own_name_or_no_name_or_an_unknown_one_is_taken(folder):
    for number, comment in enumerate(("alder", "", "it@hospital", "oak")):
        add_key(folder, "alder", f"{new_key().rsplit(' ', 1)[0]} {comment}\n", renew=number > 0)
    assert len(load_registry(folder).site("alder").keys) == 4


def test_a_revoked_key_is_not_called_a_former_one_and_a_renewed_one_is(folder, capsys, monkeypatch):
    superlink = FakeSuperLink()

    @contextmanager
    def here(connection):
        yield superlink

    monkeypatch.setattr(control, "Control", here)
    monkeypatch.setattr(control, "find_connection", lambda path: path)
    at = ["--coordinator", str(folder.path)]
    main(["register", "alder", new_key(), *at])
    main(["renew", "alder", new_key(), *at])
    assert "alder: its former key is unregistered" in capsys.readouterr().out
    main(["revoke", "alder", *at])
    assert "alder: its key is unregistered" in capsys.readouterr().out


def test_commands_of_another_account_do_not_touch_the_register(folder, capsys, monkeypatch):
    before = folder.register.read_bytes()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert main(["register", "alder", new_key(), "--coordinator", str(folder.path)]) == 2
    assert "run it as" in capsys.readouterr().err and folder.register.read_bytes() == before


def test_unknown_names_are_named_with_those_there_are(folder):
    with pytest.raises(UserError, match="alder, birch"):
        add_key(folder, "aldr", new_key())
    with pytest.raises(UserError, match="nothing to revoke"):
        revoke(folder, "alder")


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
def test_a_fingerprint_is_that_of_ssh_keygen(tmp_path, folder):
    path = tmp_path / "key.pub"
    path.write_text(new_key() + "\n")
    shown = subprocess.run(["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True).stdout
    key = add_key(folder, "alder", registry.read_key_argument(str(path)))
    assert key.fingerprint == shown.split()[1]


def test_commands_without_a_running_superlink_are_kept_for_its_start(folder, tmp_path, capsys):
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(
        '[superlink]\ndefault = "x"\n[superlink.x]\naddress = "127.0.0.1:9"\ninsecure = true\n'
    )
    at = ["--coordinator", str(tmp_path)]
    assert main(["register", "alder", new_key(), *at]) == 0
    assert "when start.sh starts it" in capsys.readouterr().out
    assert main(["renew", "alder", new_key(), *at]) == 0
    assert main(["revoke", "alder", *at]) == 0
    assert status(folder)["alder"] == "revoked"
    assert main(["register", "--pending", *at]) == 2
    assert "start it" in capsys.readouterr().err


def test_what_a_person_must_look_at_is_told_with_a_code_and_a_remedy(tmp_path, folder, monkeypatch, capsys):
    superlink = FakeSuperLink()
    stranger = s.load_ssh_public_key(new_key().encode())
    superlink.register("stranger", stranger.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    superlink.refuse = "alder"
    add_key(folder, "alder", new_key())
    monkeypatch.setattr(control, "find_connection", lambda path: None)
    monkeypatch.setattr(control, "Control", lambda connection: nullcontext(superlink))
    assert main(["register", "--pending", "--coordinator", str(tmp_path)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line[:6] for line in told] == ["error:", "  -> p", "error:", "  -> f"]
    assert all(line.endswith(" [FD402]") for line in told[::2])
    assert "alder: not registered" in told[0] and "(stranger)" in told[2] and "find out who" in told[3]


def test_a_folder_that_is_none_is_named(tmp_path, capsys):
    assert main(["revoke", "alder", "--coordinator", str(tmp_path / "nowhere")]) == 2
    assert "--coordinator" in capsys.readouterr().err


def test_a_damaged_register_is_not_taken_for_an_empty_one(folder):
    folder.register.write_text('{"version": 1, "sites": [')
    with pytest.raises(UserError, match="backup"):
        load_registry(folder)
    with pytest.raises(UserError, match="backup"):
        add_sites(folder, ["cedar"])
    assert folder.register.read_text() == '{"version": 1, "sites": ['
