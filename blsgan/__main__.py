"""``python -m blsgan``, and the console script."""

import signal
import sys

# Until `main` says what Ctrl-C means there is nothing to clean up: it ends the process, and no
# traceback of an import is shown.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from blsgan.cli import main

if __name__ == "__main__":
    sys.exit(main())
