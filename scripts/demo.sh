#!/usr/bin/env bash
# From nothing to heatmaps: install, make a synthetic cohort, embed it, train, evaluate, predict, report.
#   scripts/demo.sh [FOLDER]    default folder: demo
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
"$root/scripts/setup.sh"
exec "$root/.venv/bin/monai-mil" demo "${1:-$root/demo}"
