"""A MONAI bundle: configuration and weights, made of torch's and MONAI's own parts, with no code of this project.

    configs/metadata.json        what MONAI's bundles say of themselves, and the student's description
    configs/inference.json       the network, written out part by part; before and after it MONAI's transforms
    models/model.safetensors     weights, under the names that the network has there
    docs/README.md               the model card

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir DIR --output_dir OUT

A U-Net is torch's layers and MONAI's `SkipConnection`, nested. Networks with an encoder of timm are refused: timm is no
part of MONAI. Pictures of eight bits are read. Where they are not of the study's size, MONAI scales them in another way
than we do (we: triangle filter), and masks differ at their edges; at that size both give the same.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dusss_core.errors import UserError
from dusss_core.files import write_json, write_tensors, write_text
from dusss_core.inference import OVERLAP

if TYPE_CHECKING:
    from dusss_core.student import Student

Part = dict[str, Any]
Flat = list[tuple[str, nn.Module]]


def write_bundle(student: Student, folder: Path, licence: str) -> str:
    """Write the bundle.

    Raises:
        UserError: a network with parts that MONAI does not have; disk full.
    """
    network, names = expressed(student)
    tensors = student.tensors()
    write_tensors(
        folder / "models/model.safetensors",
        {new: tensors[old] for old, new in names.items()},
        {"format": "pt"},
    )
    write_json(folder / "configs/inference.json", _inference(student, network))
    write_json(folder / "configs/metadata.json", _metadata(student))
    from dusss_core.export.card import card

    write_text(folder / "docs/README.md", card(student, {}, licence))
    return f"{folder}: MONAI bundle; run it with: python -m monai.bundle run --config_file configs/inference.json"


def expressed(student: Student) -> tuple[Part, dict[str, str]]:
    """The network as sections of a bundle's configuration, and the new name of each of its tensors.

    Raises:
        UserError: a part that neither torch nor MONAI has.
    """
    from dusss_core.models.decoders import DecoderNetwork

    network = student.network
    if not isinstance(network, DecoderNetwork):
        raise UserError(
            f"{student.source}: a MONAI bundle cannot hold its network: {student.about.network.encoder} is an encoder "
            "of timm, and no part of MONAI",
            "export it with --to onnx",
        )
    downs = _downs(network)
    sections: Part = {}
    prefixes: dict[str, str] = {}

    def flat(name: str, modules: Flat, place: str, first: int) -> int:
        sections[name] = [_part(module, student.source) for _, module in modules]
        for number, (path, _) in enumerate(modules, start=first):
            prefixes[path] = f"{place}{number}"
        return first + len(modules)

    def level(depth: int, place: str) -> None:
        count = flat(f"down_{depth}", downs[depth], place, 0)
        if depth + 1 == len(downs):
            sections[f"below_{depth}"] = f"$torch.nn.Sequential(*@down_{depth})"
            return
        block = len(downs) - 2 - depth  # decoders count from the coarsest level
        inside = f"{place}{count}.submodule."
        level(depth + 1, f"{inside}0.")
        flat(
            f"raise_{depth}",
            _raise(network.up[block].raise_resolution, f"up.{block}.raise_resolution"),
            f"{inside}1.",
            0,
        )
        sections[f"skip_{depth}"] = {
            "_target_": "monai.networks.layers.simplelayers.SkipConnection",
            "submodule": f"$torch.nn.Sequential(@below_{depth + 1}, torch.nn.Sequential(*@raise_{depth}))",
            "dim": 1,
            "mode": "cat",
        }
        flat(f"up_{depth}", _leaves(network.up[block].convs, f"up.{block}.convs"), place, count + 1)
        sections[f"below_{depth}"] = f"$torch.nn.Sequential(*@down_{depth}, @skip_{depth}, *@up_{depth})"

    level(0, "0.")
    flat("head", [("head", network.head)], "", 1)
    sections["network_def"] = "$torch.nn.Sequential(@below_0, *@head)"
    names = {}
    for name in network.state_dict():
        path, _, leaf = name.rpartition(".")
        names[name] = f"{prefixes[path]}.{leaf}"
    return sections, names


def _downs(network: nn.Module) -> list[Flat]:
    """The leaves of each level on the way down, finest first."""
    blocks = [(f"down.{i}", block) for i, block in enumerate(network.down)]
    if hasattr(network, "stem"):
        blocks = [("stem", network.stem), *blocks]
    pool: Flat = [("", nn.MaxPool2d(2))]
    return [([] if i == 0 else pool) + _leaves(block, name) for i, (name, block) in enumerate(blocks)]


def _raise(module: nn.Module, path: str) -> Flat:
    from dusss_core.models.decoders import Raise

    if not isinstance(module, Raise):
        return [(path, module)]
    bilinear = {"mode": "bilinear", "align_corners": True} if module.kind == "bilinear" else {"mode": "nearest"}
    return [(f"{path}.conv", module.conv), ("", nn.Upsample(scale_factor=2, **bilinear))]


def _leaves(module: nn.Module, path: str) -> Flat:
    if not isinstance(module, nn.Sequential):
        return [(path, module)]
    return [leaf for name, child in module.named_children() for leaf in _leaves(child, f"{path}.{name}")]


_SETTINGS = {
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    nn.ConvTranspose2d: ("in_channels", "out_channels", "kernel_size", "stride"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps"),
    nn.ReLU: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.Dropout: ("p",),
    nn.MaxPool2d: ("kernel_size",),
    nn.Upsample: ("scale_factor", "mode", "align_corners"),
}
"""What each part of torch is built with."""


def _part(module: nn.Module, source: str) -> Part:
    kind = type(module)
    if kind not in _SETTINGS:
        raise UserError(f"{source}: a MONAI bundle cannot hold its part {kind.__name__}", "export it with --to onnx")
    values = {name: getattr(module, name) for name in _SETTINGS[kind]}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {"_target_": f"torch.nn.{kind.__name__}", **plain}


_IMPORTS = ("import glob", "import os", "import torch", "from PIL import Image", "from PIL import ImageOps")
_IMPORTS += ("from safetensors.torch import load_file",)


def _inference(student: Student, network: Part) -> Part:
    image = student.about.image
    size = [image.size, image.size]
    mode = "L" if image.channels == 1 else "RGB"
    tiled = image.mode == "tile"
    black = (0 - image.mean) / image.std
    window = {
        "_target_": "SlidingWindowInferer",
        "roi_size": size,
        "sw_batch_size": 4,
        "overlap": OVERLAP,
        "mode": "gaussian",
        "padding_mode": "constant",
        "cval": black,
    }
    one = image.classes == 1
    scaled = {"_target_": "Resized", "keys": "image", "spatial_size": size, "mode": "bilinear", "align_corners": False}
    # opened anew: a TIFF that is turned and that Pillow opens by its name comes out garbled
    upright = "ImageOps.exif_transpose(Image.open(open(picture.filename, 'rb')))"
    before = [
        # PIL's reader of MONAI lays pictures on their side; MONAI's writer lays masks back
        {
            "_target_": "LoadImaged",
            "keys": "image",
            "reader": "PILReader",
            "converter": f"$lambda picture: {upright}.convert('{mode}')",
            "ensure_channel_first": True,
        },
        {"_target_": "Transposed", "keys": "image", "indices": [0, 2, 1]},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
        *([] if tiled else [scaled]),
        {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": image.mean, "divisor": image.std},
    ]
    decided = {"threshold": student.about.threshold} if one else {"argmax": True}
    after = [
        {"_target_": "Activationsd", "keys": "pred", **({"sigmoid": True} if one else {"softmax": True})},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", **decided},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_ext": ".png",
            "output_postfix": "mask",
            "output_dtype": "$np.uint8",
            "scale": 255 if one else None,
            "resample": False,
            "separate_folder": False,
            "print_log": False,
        },
    ]
    return {
        # MONAI knows one name of each
        "imports": [f"${line}" for line in _IMPORTS],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/pictures'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "pictures": "$sorted(sum((glob.glob(os.path.join(@dataset_dir, '*.' + s)) for s in "
        "('png', 'jpg', 'jpeg', 'bmp', 'tif', 'tiff')), []))",
        **network,
        "network": "$@network_def.to(@device).eval()",
        "weights": "$@network.load_state_dict(load_file(@bundle_root + '/models/model.safetensors'))",
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': name} for name in @pictures]",
            "transform": "@preprocessing",
        },
        "inferer": window if tiled else {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": after},
        "initialize": ["$torch.set_grad_enabled(False)", "@weights"],
        "run": [
            "$[@postprocessing({**item, 'pred': @inferer(item['image'][None].to(@device), @network)[0]}) "
            "for item in @dataset]"
        ],
    }


def _metadata(student: Student) -> Part:
    about, image = student.about, student.about.image
    channels = image.outputs
    return {
        "version": "1.0.0",
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": importlib.metadata.version("torch"),
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": {
            "pillow": importlib.metadata.version("pillow"),
            "safetensors": importlib.metadata.version("safetensors"),
        },
        "name": f"Student of study {about.study}",
        "task": "Segmentation of medical pictures",
        "description": f"Trained in a federation by feddusss; it marks {', '.join(about.names[1:])}.",
        "authors": "the sites of the study",
        "copyright": "the sites of the study",
        "intended_use": "Research; no medical device.",
        "student": json.loads(about.model_dump_json()),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": image.channels,
                    "spatial_shape": [image.size, image.size],
                    "dtype": "float32",
                    "value_range": [(0 - image.mean) / image.std, (1 - image.mean) / image.std],
                    "is_patch_data": image.mode == "tile",
                    "channel_def": {"0": "gray"} if image.channels == 1 else {"0": "R", "1": "G", "2": "B"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": channels,
                    "spatial_shape": [image.size, image.size],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": image.mode == "tile",
                    "channel_def": {str(i): name for i, name in enumerate(about.names[-channels:])},
                }
            },
        },
    }
