"""Turns a MIDI file into audio: `python infer.py --midi song.mid --out song.wav`."""

import sys

from spectrodiff.cli import main

if __name__ == "__main__":
    main(["synthesize", *sys.argv[1:]])
