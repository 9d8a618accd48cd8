"""A federation of NVFlare whose sites do not train, in its simulator: python nvflare_noop.py --help

Run by `benchmarks/rivals/against_nvflare.py`, with an interpreter that has NVFlare (and torch, for `--model torch`).
numpy: one float32 array in NVFlare's FedAvg recipe for NumPy, the least that it can do. torch: a network with tensors
of the student's shapes in its FedAvg recipe for PyTorch, as a study of pictures would be written.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("numpy", "torch"), default="numpy")
    parser.add_argument("--shapes", type=Path, required=True, help="JSON: name of each tensor -> its shape")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder to work in")
    arguments = parser.parse_args()
    from nvflare.recipe.sim_env import SimEnv

    logging.disable(logging.INFO)
    common = {
        "name": "noop",
        "min_clients": arguments.sites,
        "num_rounds": arguments.rounds,
        "train_script": str(HERE / "nvflare_client.py"),
    }
    make = {"numpy": _numpy, "torch": _torch}[arguments.model]
    recipe = make(json.loads(arguments.shapes.read_text()), arguments, common)
    recipe.execute(SimEnv(num_clients=arguments.sites, workspace_root=str(arguments.folder / "workspace")))


def _numpy(shapes: dict[str, list[int]], arguments: argparse.Namespace, common: dict):
    import math

    import numpy as np
    from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe

    file = (arguments.folder / "model.npy").absolute()
    np.save(file, np.zeros(sum(math.prod(shape) for shape in shapes.values()), np.float32))
    return NumpyFedAvgRecipe(initial_ckpt=str(file), **common)


def _torch(shapes: dict[str, list[int]], arguments: argparse.Namespace, common: dict):
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe

    sys.path.insert(0, str(HERE))
    os.environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    from nvflare_model import Student

    return FedAvgRecipe(model=Student(str(arguments.shapes.absolute())), **common)


if __name__ == "__main__":
    main()
