"""Time ``split_attenuation`` beside PyTorch; options as ``blsgan bench ops``.

python benchmarks/bench_split_attenuation.py -o benchmarks/results/split_attenuation.csv
"""

import sys

from blsgan.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "ops", "--op", "split_attenuation", *sys.argv[1:]]))
