"""A coordinator with many sites, in a process of its own: python -m tests.server.many_sites FOLDER SITES WIDTH

The sites are not simulated: they answer from files, in the wire format, so that what is seen is the coordinator's. Two
rounds with a student of `WIDTH`; 64 has 59 MB. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from uuid import uuid4

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from dusss_core.phases import Phase
from dusss_core.training import initial_shared
from feddusss import wire
from server.rounds.coordinator import Coordinator
from server.runs.events import Reporter
from server.runs.runfolder import open_run
from server.simulation.inprocess import InProcessGrid, identify
from tests.server.conftest import HOSPITALS, finals, make_study

DRAWN = 3
"""Different answers; the sites take turns with them."""


class FromFiles(InProcessGrid):
    """Sites whose training is to send a file."""

    def __init__(self, sites: int, answers: list[Path]):
        identify(1)
        super().__init__(None, [Path(f"/none/s{number:04d}/site.yaml") for number in range(1, sites + 1)])
        self._answers = answers

    def _work(self, message: Message) -> Message:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        if kind == "query":
            content = {
                "config": ConfigRecord({"site": self._names[node], "role": "train"}),
                "metrics": MetricRecord({"n_labelled": 10 + node, "n_unlabelled": 0, "n_val": 0, "n_test": 0}),
            }
        elif kind == "train":
            data = self._answers[node % DRAWN].read_bytes()
            content = {
                "arrays": ArrayRecord({wire.KEY: Array("uint8", (len(data) - 128,), "numpy.ndarray", data)}),
                "metrics": MetricRecord({"num-examples": 10 + node, "seconds": 1.0}),
            }
        else:
            content = {"metrics": MetricRecord({"n": 0.0})}
        answer = Message(RecordDict(content), reply_to=message)
        answer.metadata.__dict__["_message_id"] = str(uuid4())
        return answer


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main(folder: Path, sites: int, width: int) -> None:
    torch.set_num_threads(1)
    study = make_study(HOSPITALS, method={"preset": "mean_teacher"}, student__width=width, segment__rounds=2)
    answers = [folder / f"answer-{number}" for number in range(DRAWN)]
    if os.fork() == 0:  # what it takes to draw them is not the coordinator's
        model = initial_shared(study.training(), Phase.SEGMENT)
        for number, path in enumerate(answers):
            draw = torch.Generator().manual_seed(number)
            drawn = {
                name: tensor + 0.01 * torch.randn(tensor.shape, generator=draw)
                for name, tensor in model.items()
                if wire.is_rounded(name, tensor)
            }
            path.write_bytes(wire.pack({**model, **drawn})[wire.KEY].data)
        os._exit(0)
    os.wait()
    before = peak_mb()
    out = folder / f"run-{sites}"
    Coordinator(FromFiles(sites, answers), study, open_run(out, study), reporter=Reporter(), wait_s=0).run()
    size = answers[0].stat().st_size / 1e6
    print(json.dumps({"before_mb": before, "peak_mb": peak_mb(), "answer_mb": size, **finals(out)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
