"""How well a vocoder gives back recordings from their true mels, and how fast.

python benchmarks/vocoder.py --dataset rendered [--checkpoint runs/melgan/export]
"""

import argparse
import pathlib
import time

import numpy as np

from spectrodiff.audio.mel import SAMPLE_RATE, log_mel
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.recordings import decode
from spectrodiff.evaluation.reconstruction import compare, mean_scores
from spectrodiff.pretrained.native import VOCODER, load
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.streaming import MelGAN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dataset", nargs="+", default=["rendered"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--pieces", type=int, default=8)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="folder with a trained MelGAN")
    options = parser.parse_args()

    vocoders = {"Griffin-Lim": GriffinLim()}
    if options.checkpoint:
        vocoders["MelGAN"] = MelGAN(load(options.checkpoint, VOCODER)[0])
    parts = Mixture(options.data_dir, options.dataset).heldout(options.split)
    records = [(part, index) for part in parts for index in range(len(part))]
    chosen = np.linspace(0, len(records) - 1, min(len(records), options.pieces)).astype(int)
    recordings = [decode(part[index]).audio for part, index in (records[i] for i in chosen)]
    mels = [np.asarray(log_mel(recording)) for recording in recordings]
    print(f"{len(recordings)} pieces of the {options.split} split")
    for name, vocoder in vocoders.items():
        vocoder(mels[0])  # compiles
        start = time.perf_counter()
        audios = [vocoder(mel) for mel in mels]
        speed = sum(map(len, recordings)) / SAMPLE_RATE / (time.perf_counter() - start)
        scores = mean_scores([compare(audio, recording) for audio, recording in zip(audios, recordings, strict=True)])
        measures = "  ".join(f"{name} {score:.2f}" for name, score in scores.items() if score is not None)
        print(f"{name:>12}  {measures}  {speed:.1f}x realtime", flush=True)


if __name__ == "__main__":
    main()
