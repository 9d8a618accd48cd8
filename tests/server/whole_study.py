"""python -m tests.server.whole_study FOLDER: a whole study between real processes, for who watches them."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.server.conftest import make_study
from tests.server.deployed import federation


def main(folder: Path) -> None:
    """Run a study of one round a phase between two hospitals."""
    study = make_study(study="watched", pretrain__rounds=1, segment__rounds=1, federation={"sites": ["alder", "birch"]})
    with federation(folder, study) as there:
        there.start_clients(600)
        there.run_to_end(folder / "run", seconds=900)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
