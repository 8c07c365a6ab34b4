"""``python -m blsgan``."""

import sys

from blsgan.cli import main

sys.exit(main())
