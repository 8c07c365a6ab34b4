"""Time ``layer_loss`` beside PyTorch; options as ``blsgan bench ops``.

python benchmarks/bench_layer_loss.py -o benchmarks/results/layer_loss.csv
"""

import sys

from blsgan.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "ops", "--op", "layer_loss", *sys.argv[1:]]))
