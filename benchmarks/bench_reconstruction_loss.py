"""Time ``reconstruction_loss`` beside PyTorch; options as ``blsgan bench ops``.

python benchmarks/bench_reconstruction_loss.py -o benchmarks/results/reconstruction_loss.csv
"""

import sys

from blsgan.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "ops", "--op", "reconstruction_loss", *sys.argv[1:]]))
