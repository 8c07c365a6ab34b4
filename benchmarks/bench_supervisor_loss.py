"""Time ``supervisor_loss`` beside PyTorch; options as ``blsgan bench ops``.

python benchmarks/bench_supervisor_loss.py -o benchmarks/results/supervisor_loss.csv
"""

import sys

from blsgan.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "ops", "--op", "supervisor_loss", *sys.argv[1:]]))
