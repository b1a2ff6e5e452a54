import os
import warnings

from monai_mil.runs.quiet_imports import quiet_imports

KNOWN = [
    b"Failed to load nvtiff library! Please install nvTIFF (see https://docs.nvidia.com).\n",
    b"\x1b[0;31m[ERROR] \x1b[0m[nvjpeg2k_ext] Failed to load nvJPEG2000 library or retrieve version.\n",
    b"Note: If using nvImageCodec's Python distribution, it is enough to install the nvTIFF wheel\n",
]
OTHERS = [b"Failed to load the model\n", b"a line without an end"]


def test_only_the_known_lines_of_native_libraries_are_left_out(capfd):
    with quiet_imports():
        for line in (*KNOWN, *OTHERS):
            os.write(2, line)
    os.write(2, b"!")
    assert capfd.readouterr().err == "Failed to load the model\na line without an end!"


def test_only_the_known_warning_is_left_out():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with quiet_imports():
            warnings.warn("Failed to load image Python extension: 'no libjpeg'", stacklevel=1)
            warnings.warn("another", stacklevel=1)
    assert [str(warning.message) for warning in told] == ["another"]
