from .frame import ScanFrame
from .scan import Scan

__all__ = [
    "Scan",
    "ScanFrame",
]
