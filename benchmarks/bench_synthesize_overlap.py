"""Time ``synthesize_overlap`` beside PyTorch; options as ``blsgan bench ops``.

python benchmarks/bench_synthesize_overlap.py -o benchmarks/results/synthesize_overlap.csv
"""

import sys

from blsgan.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "ops", "--op", "synthesize_overlap", *sys.argv[1:]]))
