#!/usr/bin/env bash
# Ask pip whether monai-mil enters a MONAI Label or MONAI Deploy environment without changing a package that is there.
#   scripts/resolve_beside.sh dist/monai_mil-0.1.0-py3-none-any.whl
# Needs a package index and some minutes; nothing is installed, and little but metadata is downloaded.
set -euo pipefail
wheel="$(realpath "$1")"
recipes="$(dirname "$(realpath "$0")")/environments"
work="$(mktemp -d)"
trap 'rm -r "$work"' EXIT

resolve() { # REPORT ARGUMENTS...: what pip would install into an empty environment
    python3 -m pip install --quiet --dry-run --ignore-installed --report "$work/$1" "${@:2}"
}

for case in label label:cucim12,itk deploy deploy:cucim13,dicom; do
    recipe="${case%%:*}"
    extras="${case#"$recipe"}"
    [ -e "$work/$recipe.json" ] || resolve "$recipe.json" --requirement "$recipes/$recipe.txt"
    python3 -c 'import json, sys
for entry in json.load(open(sys.argv[1]))["install"]:
    print(entry["metadata"]["name"] + "==" + entry["metadata"]["version"].partition("+")[0])' \
        "$work/$recipe.json" >"$work/pins.txt"
    # With every version pinned pip ends with an error where ours asks for another one.
    resolve ours.json --requirement "$work/pins.txt" "monai-mil${extras:+[${extras#:}]} @ file://$wheel"
    echo "$case: $(wc -l <"$work/pins.txt") packages stay as they are"
done
