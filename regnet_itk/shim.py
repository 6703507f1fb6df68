"""What launchers written by version 0.1 call: ``python -m regnet_itk.shim``."""

import sys

from regnet_itk.cli.shim import stand_in

if __name__ == "__main__":
    sys.exit(stand_in(sys.argv[1:]))
