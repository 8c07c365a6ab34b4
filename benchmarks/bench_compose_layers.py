"""Time ``compose_layers`` beside PyTorch; options as ``blsgan bench ops``.

python benchmarks/bench_compose_layers.py -o benchmarks/results/compose_layers.csv
"""

import sys

from blsgan.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "ops", "--op", "compose_layers", *sys.argv[1:]]))
