"""``python -m workbench``: the command ``workbench``, also where its script is not on the path."""

import sys

from workbench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
