"""``python -m monai_mil.deploy``."""

import sys

from monai_mil.deploy import main

if __name__ == "__main__":
    sys.exit(main())
