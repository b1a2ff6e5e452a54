"""Whether a scan's values are Hounsfield units at all."""

from __future__ import annotations

import numpy as np

from monai_mil.scans.repairs import SURELY_AIR
from monai_mil.scans.windows import SlicePreset

_LEAST_WITHIN = 0.5


def has_doubtful_units(hu: np.ndarray) -> bool:
    """Whether nothing is as dark as air: then the values of a scan may be no Hounsfield units.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.scans import has_doubtful_units
        >>> has_doubtful_units(np.array([-1000.0, 40.0])), has_doubtful_units(np.array([0.0, 1.0]))
        (False, True)
    """
    return bool(hu.min() > SURELY_AIR)


def fits_values(preset: SlicePreset, hu: np.ndarray) -> bool:
    """Whether a preset's windows, or what it clips to, lie within the values of a scan and hold at least half of them.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.scans import find_preset, fits_values
        >>> values = np.linspace(0, 1, 50)
        >>> fits_values(find_preset("0.5/1"), values), fits_values(find_preset("chest_rsna"), values)
        (True, False)
    """
    spans = [(window.low, window.high) for window in preset.windows] or [preset.clip]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    slack = 0.01 * (high - low)
    if low < float(hu.min()) - slack or high > float(hu.max()) + slack:
        return False
    return float(((hu >= low) & (hu <= high)).mean()) >= _LEAST_WITHIN
