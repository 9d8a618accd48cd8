"""A finished student at work.

python -m dusss_core predict MODEL PICTURES... --out DIR     masks of files and folders
python -m dusss_core fit MODEL PICTURES... --out FILE        a student with statistics of your own pictures
python -m dusss_core evaluate MODEL MANIFEST --out FILE.csv  figures on any data set with masks
python -m dusss_core export MODEL --to FORMAT --out PATH     ONNX, TorchScript, MONAI bundle, model card
python -m dusss_core show MODEL                              what a student's file says of itself
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dusss_core import commandline
from dusss_core.errors import UserError

FORMATS = ("onnx", "torchscript", "monai-bundle", "card")


def main(argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
    """The command line of a finished student."""
    return commandline.run(lambda arguments: arguments.command(arguments), parser or build_parser(), argv)


def build_parser(prog: str = "python -m dusss_core") -> argparse.ArgumentParser:
    """The command line, as it is called `prog`."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    predict = _command(commands, "predict", _predict, "masks of files and folders")
    predict.add_argument("pictures", nargs="+", help="PNG, JPEG, TIFF, WebP, BMP, DICOM, NIfTI, or folders of them")
    predict.add_argument("--out", type=Path, required=True, help="folder of the outputs; gone on with if it is there")
    predict.add_argument("--text", type=Path, metavar="SHEET", help="CSV or xlsx with a sentence for each picture")
    predict.add_argument("--partial", action="store_true", help="with --text: other rows and pictures may be there")
    predict.add_argument("--vlm", type=Path, metavar="FILE", help="with --text: in place of MODEL's own, beside it")
    predict.add_argument("--encoder", default="", metavar="FOLDER", help="with --text: of the text encoder")
    predict.add_argument("--fetch", action="store_true", help="with --text: the text encoder may come from a model hub")
    predict.add_argument("--overlay", action="store_true", help="also the picture with the outlines")
    predict.add_argument("--probabilities", action="store_true", help="also the probabilities")
    predict.add_argument("--threshold", type=float, help="of one class, in place of the file's")
    predict.add_argument(
        "--code",
        action="append",
        default=[],
        metavar="VALUE^SCHEME^MEANING",
        help="what a class is in DICOM SEG, once for each class; Lesion if left out",
    )

    fit = _command(commands, "fit", _fit, "a student with statistics of your own pictures")
    fit.add_argument("pictures", nargs="+", help="some sixteen pictures, or a folder of them; no masks are needed")
    fit.add_argument("--out", type=Path, required=True, help="file of the fitted student")
    fit.add_argument("--check", type=Path, metavar="MANIFEST", help="pictures with masks: fit only if that helps there")

    evaluate = _command(commands, "evaluate", _evaluate, "figures on any data set with masks")
    evaluate.add_argument("manifest", type=Path, help="CSV or Parquet with the columns id, image, mask")
    evaluate.add_argument("--out", type=Path, help="CSV to write, a line per picture")
    evaluate.add_argument("--split", help="records of this split alone: train, val or test")
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")

    export = _command(commands, "export", _export, "ONNX, TorchScript, MONAI bundle, model card")
    export.add_argument("--to", choices=FORMATS, required=True)
    export.add_argument("--out", type=Path, help="file or folder to write")
    export.add_argument("--run", type=Path, help="card: the run's folder, for its figures; if left out, the model's")
    export.add_argument("--license", help="card, monai-bundle: of the weights, such as apache-2.0")

    _command(commands, "show", _show, "what a student's file says of itself")
    return parser


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    parser.add_argument("model", type=Path, help="a student's file, such as RUN/student.safetensors")
    if name != "show":
        parser.add_argument(
            "--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:N or mps"
        )
    commandline.add_debug(parser)
    parser.set_defaults(command=run)
    return parser


def _predict(arguments: argparse.Namespace) -> None:
    from dusss_core.predicting.predict import predict, told

    if arguments.text is None:
        _refuse_without_text(arguments)
    student = _load(arguments)
    if arguments.threshold is not None:
        if not 0 < arguments.threshold < 1:
            raise UserError(
                f"--threshold {arguments.threshold}: not between 0 and 1", "give a probability, such as 0.5"
            )
        if student.about.image.classes > 1:
            raise UserError(
                f"--threshold: {arguments.model} has several classes, of which the most probable one counts",
                "leave it out",
            )
        student.about = student.about.model_copy(update={"threshold": arguments.threshold})
    options = {"overlay": arguments.overlay, "probabilities": arguments.probabilities, "codes": arguments.code}
    if arguments.text is not None:
        options |= {"sheet": arguments.text, "partial": arguments.partial}
        student.listen(arguments.vlm, encoder=arguments.encoder, fetch=arguments.fetch)
    print(told(predict(student, arguments.pictures, arguments.out, **options), arguments.out))


def _refuse_without_text(arguments: argparse.Namespace) -> None:
    """Refuse what says how sentences are read where none are given: the pictures would be seen alone, unsaid."""
    for name in ("partial", "vlm", "encoder"):
        if getattr(arguments, name):
            raise UserError(f"--{name}: goes with --text", "name the sheet of sentences with --text, or leave it out")


def _fit(arguments: argparse.Namespace) -> None:
    from dusss_core.predicting.fit import fit

    print(fit(_load(arguments), arguments.pictures, arguments.out, arguments.check))


def _evaluate(arguments: argparse.Namespace) -> None:
    from dusss_core.predicting.evaluate import evaluate, table

    figures = evaluate(_load(arguments), arguments.manifest, arguments.out, arguments.split)
    if arguments.json:
        import json

        print(json.dumps(figures, indent=2))
    else:
        print(table(figures))


def _export(arguments: argparse.Namespace) -> None:
    from dusss_core.export import export

    for name, formats in (("run", ("card",)), ("license", ("card", "monai-bundle"))):
        if getattr(arguments, name) is not None and arguments.to not in formats:
            raise UserError(f"--{name}: goes with --to {' or '.join(formats)}", "leave it out")
    if arguments.run is not None and not (arguments.run / "summary.json").is_file():
        raise UserError(
            f"--run {arguments.run}: no summary.json, from which the figures would be", "name a run's folder"
        )
    arguments.device = "cpu"
    student = _load(arguments)
    print(export(student, arguments.to, arguments.out, run=arguments.run, licence=arguments.license or "unknown"))


def _show(arguments: argparse.Namespace) -> None:
    from dusss_core.student.file import read_student

    about, tensors = read_student(arguments.model)
    print(about.model_dump_json(indent=2))
    print(f"{sum(tensor.numel() for tensor in tensors.values()):,} numbers in {len(tensors)} tensors", file=sys.stderr)


def _load(arguments: argparse.Namespace):
    from dusss_core.student.student import load

    return load(arguments.model, arguments.device, fetch=getattr(arguments, "fetch", False))


if __name__ == "__main__":
    sys.exit(main())
