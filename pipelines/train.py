"""Train a network: ``python pipelines/train.py CONFIG.toml --images FOLDER --out FOLDER``; continues by itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from regnet_itk.errors import RegNetItkError
from regnet_itk.training.config import read_training_config
from regnet_itk.training.loop import Trainer, TrainingOptions


def main() -> None:
    """Read the configuration, train, and say where the model is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of the CTs that the configuration names")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, the log and the model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--start", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        config = read_training_config(arguments.config)
        options = TrainingOptions(
            "cpu", cache=arguments.cache, start_from=arguments.start, say=lambda line: print(line, flush=True)
        )
        path = Trainer(config, arguments.images, arguments.out, options).run()
    except RegNetItkError as error:
        sys.exit(f"error: {error}")
    print(f"the model is {path}")


if __name__ == "__main__":
    main()
