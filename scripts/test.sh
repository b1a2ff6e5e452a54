#!/usr/bin/env bash
# Install what the tests need and run them all; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
# Two threads a process thrash on a small machine; results do not depend on it. Files run side by side, one a
# core, in the order of tests/conftest.py.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Large arrays come from memory that a process keeps, up to 1 GiB: handing each back and faulting its pages in anew
# took half of the kernel's time.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1073741824
# Some 200 processes read these modules: they compile them once.
unset PYTHONDONTWRITEBYTECODE
exec .venv/bin/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
