"""Everything that a GPU is wanted for, within so many minutes; benchmarks/gpu_run.sh starts it.

    python -m benchmarks.gpu.run .gpu --out DIR                      tiny first, then all of it
    python -m benchmarks.gpu.run .gpu --out DIR --calls 2 --later 5  rounds planned for two calls; this is the first
    python -m benchmarks.gpu.run .gpu --out DIR2 --continue DIR      the second
    python -m benchmarks.gpu.run .gpu --out DIR --tiny --device cpu  a rehearsal: all of it, small, in a minute or two

In this order: the whole program with tiny networks on a few pictures, which ends it where anything fails; correctness
against the CPU; the project's own tests for a GPU; steps (benchmarks/steps.py); rounds of a cell of the accuracy grid's
profile `gpu`, as many as fit; the test, in the last call. DIR gets result.json, which holds what was printed as well,
and at most seven pieces of the training state (benchmarks/gpu/pieces.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dusss_core.errors import UserError
from feddusss import cli

if TYPE_CHECKING:
    from benchmarks.gpu.train import Clock, Plan

ROOT = Path(__file__).parents[2]
_CELL = ("method", "labels", "encoder", "calls", "later")
"""Arguments that a later call takes from the first."""
_TINY_PICTURES = 48


def main(argv: list[str] | None = None) -> int:
    """Rehearse, check, measure, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="the folder that `make gpu-pack` makes")
    parser.add_argument("--out", type=Path, help="folder for what comes back (environment variable OUT)")
    parser.add_argument("--continue", dest="earlier", type=Path, metavar="DIR", help="what an earlier call wrote")
    parser.add_argument("--calls", type=int, default=1, help="over which the rounds are planned (1)")
    parser.add_argument("--minutes", type=float, default=9.5, help="of this call, from its start to its end (9.5)")
    parser.add_argument("--later", type=float, metavar="MIN", help="of each later call (as this one)")
    parser.add_argument("--began", type=float, help="when it started, in seconds since 1970 (now)")
    parser.add_argument("--method", default="dusss", help="as in benchmarks/accuracy.py (dusss)")
    parser.add_argument("--labels", type=float, default=0.25, help="share of the training masks (0.25)")
    parser.add_argument(
        "--encoder", choices=("imagenet", "profile"), default="imagenet", help="of step 1: public weights, or resnet18"
    )
    parser.add_argument(
        "--skip", default="", help="of rehearsal, check, habits, tests, steps, train: what to leave out"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal alone")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_main, parser, argv)


def _main(arguments: argparse.Namespace) -> int:
    import torch

    from benchmarks.gpu.train import Clock, Plan

    if arguments.out is None and not os.environ.get("OUT"):
        raise UserError("nowhere to write to", "give --out DIR, or set OUT")
    arguments.out = out = arguments.out or Path(os.environ["OUT"])
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU that torch can use", "rehearse with --tiny --device cpu")
    out.mkdir(parents=True, exist_ok=True)
    arguments.later = arguments.later or arguments.minutes
    clock = Clock(arguments.minutes, arguments.began)
    if (arguments.earlier is None and "rehearsal" not in skipped(arguments)) or arguments.tiny:
        rehearse(arguments, clock)
        if arguments.tiny:
            return cli.OK
    plan = Plan(calls=arguments.calls, later_minutes=arguments.later)
    Run(arguments, out, clock, plan).all()
    return cli.OK


def rehearse(arguments: argparse.Namespace, clock: Clock) -> None:
    """The same program on a few small pictures, stopped after a round and continued."""
    from benchmarks.gpu.train import Plan

    say = lambda text: print(text, flush=True)  # noqa: E731
    say(f"{clock.passed:.0f} s: rehearsal")
    rounds = {"pretrain": 1, "segment": 2}
    with tempfile.TemporaryDirectory() as folder:
        first, second = (argparse.Namespace(**vars(arguments)) for _ in range(2))
        first.tiny = second.tiny = True
        first.earlier, second.earlier = None, Path(folder, "first")
        first.calls = second.calls = 2
        Run(first, Path(folder, "first"), clock, Plan(2, 1, rounds=rounds, rounds_per_call=2)).all()
        last = Path(folder, "first", "result.json")
        if "train" not in skipped(arguments):  # else there is nothing to go on with
            Run(second, Path(folder, "second"), clock, Plan(2, 2, rounds=rounds)).all()
            last = Path(folder, "second", "result.json")
            if "test" not in json.loads(last.read_text()):
                raise RuntimeError("the rehearsal did not come to its end")
        if arguments.tiny:
            shutil.copy(last, arguments.out)
    say(f"{clock.passed:.0f} s: the rehearsal is over, nothing failed")


class Run:
    """One call: its parts in order, each of whose figures are written as soon as they are known."""

    def __init__(self, arguments: argparse.Namespace, out: Path, clock: Clock, plan: Plan):
        import torch

        from benchmarks.gpu.packed import Packed

        self.arguments, self.out, self.clock, self.plan = arguments, out, clock, plan
        self.device = torch.device(arguments.device)
        self.earlier: Path | None = arguments.earlier
        self.result: dict[str, Any] = {}
        out.mkdir(parents=True, exist_ok=True)
        if self.earlier is not None:
            self._take_up()
        self.packed = Packed(arguments.pack)

    def all(self) -> None:
        """Do what is not left out."""
        from benchmarks.gpu.train import settings
        from dusss_core.objectives import reads_sentences

        arguments = self.arguments
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            self._begin()
            self.packed.unpack(folder)
            config = settings(self.packed, folder, arguments.method, arguments.labels, arguments.encoder == "imagenet")
            if arguments.tiny:
                config = tiny(config)
            self.result["config"] = told(config)
            few = _TINY_PICTURES if arguments.tiny else 0
            self.splits = self.packed.splits(arguments.labels, few)
            counts = {name: len(split) for name, split in self.splits.items()}
            self.result["pictures"] = {**counts, "labelled": int(self.splits["train"].labelled.sum())}
            self.say(f"pictures: {self.result['pictures']}")
            self.save()
            left_out = skipped(arguments)
            bank = lambda device: self.packed.bank(config, folder, device)  # noqa: E731
            if self.earlier is None:
                if "check" not in left_out:
                    self._check(config, bank)
                if "habits" not in left_out:
                    self._habits(config, bank)
                if "tests" not in left_out and self.device.type == "cuda" and not arguments.tiny:
                    self._tests()
                if "steps" not in left_out:
                    self._steps()
            if "train" not in left_out:
                reads = config.method.text_mask or reads_sentences(config)
                self._train(config, bank(self.device) if reads else None)
        self.result["finished"] = "test" in self.result
        self.save()

    # ---- the parts ----

    def _check(self, config: Any, bank: Callable[[Any], Any]) -> None:
        from benchmarks.gpu.check import compare

        found = self.result["check"] = compare(config, self.splits, bank, self.device)
        self.save()
        for name, figures in found.items():
            verdict = "agrees" if figures["agrees"] else "FAILS" if figures["fails"] else "differs a little"
            self.say(f"check of {name}: {verdict}, by {figures['worst']:.1e}")
        if any(figures["fails"] for figures in found.values()):
            raise RuntimeError(f"the device computes something else: {json.dumps(found)}")

    def _habits(self, config: Any, bank: Callable[[Any], Any]) -> None:
        from benchmarks.gpu.check import habits

        found = self.result.setdefault("check", {})
        for name, figures in habits(config, self.splits, bank, self.device).items():
            found[name] = {**found.get(name, {}), **figures}
            same = "the same bits" if figures["same_bits"] else f"weights that differ by {figures['worst']:.1e}"
            waits = ", ".join(figures["waits"]) or "nowhere"
            self.say(f"{name}, trained twice: {same}; a step waits for the GPU: {waits}")
        self.save()

    def _tests(self) -> None:
        from benchmarks.gpu.check import run_marked_tests

        found = self.result["tests"] = run_marked_tests(ROOT, min(90.0, 0.2 * self.clock.left))
        self.say(f"tests marked cuda: {found['outcome']}")
        self.save()

    def _steps(self) -> None:
        """A failure here is told, and costs no training."""
        from benchmarks import steps

        size = "demo" if self.arguments.tiny else "paper"
        phases = ("segment", "pretrain", "predict")
        few = {"batches": (4,), "steps": 1, "repeats": 1} if self.arguments.tiny else {"batches": (32, 8), "steps": 5}
        few = {"repeats": 3, "threads": (1,), **few}
        budget = min(60.0, 0.15 * self.clock.left)
        try:
            self.result["steps"] = steps.measure(self.device, sizes=(size,), phases=phases, budget_s=budget, **few)
        except Exception as error:
            if self.arguments.tiny:
                raise
            self.result["steps"] = {"failed": f"{type(error).__name__}: {error}"}
            self.say(f"steps: {self.result['steps']['failed']}")
        self.save()

    def _train(self, config: Any, text: Any) -> None:
        from benchmarks.gpu.train import Training, test

        with self._memory():
            training = Training(
                config,
                self.splits,
                text,
                self.device,
                self.clock,
                self.plan,
                self.result,
                self.save,
                self.out,
                self.say,
            )
            if self.earlier is not None:
                training.resume(self.earlier)
            over = training.run()
            self.result["shares"] = {str(phase): rounds.shares() for phase, rounds in training.rounds.items()}
            self.say(f"of a round: {self.result['shares']}")
            if over and self.plan.last:
                self.result |= test(config, training.state, self.splits["test"], text, self.device)
                told = {
                    name: self.result[name] for name in ("test", "text_mask", "with_sentence") if name in self.result
                }
                self.say(f"on the test pictures: {told}")
            elif not self.plan.last:
                self.say("the time of this call is over; the next goes on with --continue")

    # ---- what is written ----

    def _begin(self) -> None:
        from benchmarks.gpu.timing import machine

        arguments = self.arguments
        self.result |= {
            "machine": machine(self.device),
            "cell": {name: getattr(arguments, name) for name in _CELL} | {"seed": self.packed.seed},
            "tiny": arguments.tiny,
            "call": self.plan.call,
        }
        self.result.setdefault("log", [])
        self.say(f"call {self.plan.call} of {self.plan.calls}: {self.result['machine']}")
        self.save()

    def _take_up(self) -> None:
        """Go on with what an earlier call wrote."""
        file = self.earlier / "result.json"
        try:
            self.result = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{file}: not a result of an earlier call", "name its folder with --continue") from None
        if self.result["finished"]:
            raise UserError(f"{file}: its test is read already", "begin another: leave out --continue")
        if "state" not in self.result:
            raise UserError(f"{file}: it trained nothing", "leave out --continue")
        if self.result["tiny"] != self.arguments.tiny:
            raise UserError(f"{file}: of a rehearsal, or this is one", "give both calls --tiny, or neither")
        for name in _CELL:
            setattr(self.arguments, name, self.result["cell"][name])
        self.plan.calls, self.plan.call = self.arguments.calls, self.result["call"] + 1
        self.plan.later_minutes = self.arguments.later

    @contextmanager
    def _memory(self):
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        if self.device.type == "cuda":
            self.result["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)

    def say(self, text: str) -> None:
        """Print a line, and keep it."""
        line = f"{self.clock.passed:.0f} s: {text}"
        print(line, flush=True)
        self.result["log"].append(line)

    def save(self) -> None:
        """Write result.json as it is now."""
        from dusss_core.files import write_json

        self.result["seconds"] = round(self.clock.passed, 1)
        self.result.setdefault("finished", False)
        write_json(self.out / "result.json", self.result)


def told(config: Any) -> dict[str, Any]:
    """The settings, with the names of files in place of where they lie."""
    values = config.model_dump(mode="json")
    for section, key in ((values["vlm"]["text"], "encoder"), (values["vlm"], "weights")):
        section[key] = section[key] and Path(section[key]).name
    return values


def skipped(arguments: argparse.Namespace) -> set[str]:
    """The parts that are left out."""
    return {part.strip() for part in arguments.skip.split(",")}


def tiny(config: Any) -> Any:
    """The same method on networks and pictures that cost nothing."""
    config.image.size //= 2
    config.student.width = 8
    config.vlm.dim, config.vlm.decoder_width = 16, 8
    for phase in (config.pretrain, config.segment):
        phase.batch = 8
    return config


if __name__ == "__main__":
    sys.exit(main())
