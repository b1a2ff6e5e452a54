"""The application of this image: reads HOLOSCAN_INPUT_PATH, writes HOLOSCAN_OUTPUT_PATH."""

import sys

from monai_mil.deploy import main

if __name__ == "__main__":
    sys.exit(main(["${modality}", *sys.argv[1:]]))
