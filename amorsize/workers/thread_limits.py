"""Libraries that compute on several cores by themselves, and the variables that limit them.

Worker processes are limited to few threads each where the program says nothing. A function that
uses such a library may then take more CPU time per call than a serial run in the program would.
"""

from __future__ import annotations

import os
import sys

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)

_LIBRARIES = ("numpy", "torch", "tensorflow", "jax", "numexpr", "numba", "polars", "cv2")
"""Those that load others of them (SciPy, scikit-learn, pandas) are not needed here."""


def are_set() -> bool:
    """Whether this process limits such libraries."""
    return any(name in os.environ for name in VARIABLES)


def apply() -> bool:
    """Whether this process has loaded such a library, and limits it."""
    return any(name in sys.modules for name in _LIBRARIES) and are_set()
