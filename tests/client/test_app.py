"""Which site a node is, and that a hospital takes no path from a message."""

from __future__ import annotations

import json
import subprocess
import sys

from flwr.app import Context, RecordDict

from client.app import _site_file


def context(node_config, run_config):
    return Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config=run_config)


def index(tmp_path):
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "index.json").write_text(json.dumps({"site_files": ["a/site.yaml", "b/site.yaml"]}))


def test_a_hospitals_own_path_wins_over_the_run(tmp_path):
    index(tmp_path)
    node = {"site-config": "/hospital/site.yaml", "partition-id": 1}
    assert str(_site_file(context(node, {"out": str(tmp_path)}))) == "/hospital/site.yaml"


def test_a_relative_path_of_a_node_is_refused(tmp_path):
    index(tmp_path)
    assert _site_file(context({"site-config": "site.yaml", "partition-id": 1}, {"out": str(tmp_path)})) is None


def test_a_simulated_node_finds_its_site_in_the_runs_folder(tmp_path):
    index(tmp_path)
    found = _site_file(context({"partition-id": 1, "num-partitions": 3}, {"out": str(tmp_path)}))
    assert found == tmp_path / "sites" / "b" / "site.yaml"
    assert _site_file(context({"partition-id": 2, "num-partitions": 3}, {"out": str(tmp_path)})) is None


def test_a_node_without_either_has_no_site(tmp_path):
    index(tmp_path)
    assert _site_file(context({}, {"out": str(tmp_path)})) is None


def test_the_client_app_imports_nothing_heavy():
    code = "import sys, client.app; print([m for m in ('torch', 'transformers', 'monai', 'timm') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
