"""Every command of `feddusss`: for whom it is, and which room answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A command."""

    name: str
    room: str
    """`python -m ROOM` is the same."""
    verb: str
    """The room's own name for it; empty: all of the room's commands stand behind `name`."""
    text: str
    """What it does, in a few words."""


def _of(room: str, commands: str) -> tuple[Entry, ...]:
    """Entries from lines `name  text`, or `name=verb  text` where the room calls it otherwise."""
    entries = []
    for line in commands.strip().splitlines():
        names, text = line.strip().split(None, 1)
        name, _, verb = names.partition("=")
        entries.append(Entry(name, room, verb or name, text))
    return tuple(entries)


GROUPS: dict[str, tuple[Entry, ...]] = {
    "Researcher: a study on this machine": (
        *_of(
            "server",
            """
            simulate          a whole federation on this machine: feddusss simulate demo
            report            write a run's report.html again
            watch             a page in your browser that follows a run
            look              a simulation's pictures with what the models mark
            evaluate-run=evaluate  evaluate the final model of a run again
            """,
        ),
        *_of(
            "sites",
            """
            partition         divide one data set into sites
            synth             make synthetic hospitals
            """,
        ),
    ),
    "Anyone with a finished model": _of(
        "dusss_core",
        """
        predict           masks of files and folders
        fit               a model with statistics of your own pictures
        evaluate          figures on any data set with masks
        export            ONNX, TorchScript, MONAI bundle, model card
        show              what a model's file says of itself
        """,
    ),
    "Hospital": (
        *_of(
            "sites",
            """
            import            write a manifest for data that lie in a usual layout
            check             is this hospital's data fit to train on?
            """,
        ),
        Entry("client", "client", "", "take part: init, run, studies, approve, audit, report, privacy, ..."),
    ),
    "Coordinator": _of(
        "server",
        """
        federation        a real SuperLink and three clients on this machine, to try it
        provision         certificates, start files and a kit for each hospital
        register          let a hospital in by its public key
        renew             a hospital's new public key in place of its old one
        revoke            shut a hospital's key out, for good
        renew-certificate  a new server certificate
        run               run a study with the hospitals that are connected
        status            the runs of the SuperLink, or one run closely
        stop              stop a run; it can be resumed
        nodes             the registered sites, and which are connected
        metrics           runs and sites for Prometheus
        """,
    ),
}
COMPLETION = Entry("completion", "", "", "for bash, zsh or fish: feddusss completion bash --help")
COMMANDS: dict[str, Entry] = {entry.name: entry for entries in GROUPS.values() for entry in entries}


def page() -> str:
    """The whole map, for one screen."""
    lines = ["usage: feddusss COMMAND ...        feddusss COMMAND --help", ""]
    lines.append("Hospitals train one segmentation model together; no picture, sentence or mask leaves one.")
    for group, entries in {**GROUPS, "This command itself": (COMPLETION,)}.items():
        lines.append(group)
        lines += [f"  {entry.name:<18}{entry.text}" for entry in entries]
    lines.append("`python -m server|client|sites|dusss_core COMMAND` is the same. feddusss --version")
    return "\n".join(lines)
