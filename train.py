"""Trains a model: `python train.py --gin_file configs/demo.gin --workdir runs/demo`."""

import sys

from spectrodiff.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
