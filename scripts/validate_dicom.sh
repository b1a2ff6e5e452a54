#!/usr/bin/env bash
# Judge DICOM results by programs that others wrote: scripts/validate_dicom.sh OUT [SOURCE]
#
# OUT is a folder with results, SOURCE the folder of the series or slide they were made of. Whichever of these is
# installed is asked; the others are named at the end:
#   dciodvfy, dcentvfy                                      apt install dicom3tools
#   dsrdump                                                 apt install dcmtk
#   PixelMed's validator of reports                         apt install libpixelmed-java default-jre-headless
#   segimage2itkimage, paramap2itkimage, tid1500reader      pip install dcmqi (in an environment of its own)
# Prints a line a check and ends with 1 if any found an error that is not the source's own. PYTHON names a Python with
# monai-mil (default: that of .venv where it is, else python3).
set -euo pipefail

out=${1:?usage: scripts/validate_dicom.sh OUT [SOURCE]}
source=${2:-}
python=${PYTHON:-python3}
ours="${0%/*}/../.venv/bin/python"
[ -n "${PYTHON:-}" ] || [ ! -x "$ours" ] || python=$ours
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# What dciodvfy (2022) calls an error and is none.
cat > "$scratch/allowed" <<'END'
Only valid for AnnotationCoordinateType of 3D - attribute <CommonZCoordinateValue> = <>
END
# ^ of annotations in 2D: the attribute is not there.

pixelmed=/usr/share/java/pixelmed.jar
enough=(-Xss64m -Djdk.xml.xpathExprOpLimit=0 -Djdk.xml.xpathTotalOpLimit=0 -Djdk.xml.xpathExprGrpLimit=0)
# ^ without these its rules exceed what Java allows

absent=()
failed=0

has() {
    command -v "$1" > /dev/null && return
    [[ " ${absent[*]-} " == *" $1 "* ]] || absent+=("$1")
    return 1
}

told() { # name, number of errors, file with what was said
    echo "$1: $2 errors"
    if (($2 > 0)); then
        sed 's/^/    /' "$3"
        failed=1
    fi
}

# path, kind and space, one object a line; a sheared series is one of a tilted gantry
"$python" - "$out" > "$scratch/objects" <<'END'
import sys
from pathlib import Path

import numpy as np
import pydicom
from pydicom.misc import is_dicom


def space_of(header):
    if "TotalPixelMatrixColumns" in header:
        return "slide"
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(frames) < 2:
        return "series"
    shared = header.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    origins = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames], float)
    return "sheared" if np.ptp(origins @ axes.T, axis=0).max() > 0.1 else "series"


kinds = {"88.34": "SR", "66.4": "SEG", "30": "PM", "91.1": "ANN", "7": "SC"}  # of SOP classes
for path in sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file() and is_dicom(path)):
    header = pydicom.dcmread(path, stop_before_pixels=True)
    kind = kinds.get(header.SOPClassUID.removeprefix("1.2.840.10008.5.1.4.1.1."), "other")
    print(path, kind, space_of(header), sep="\t")
END
[[ -s $scratch/objects ]] || { echo "no DICOM objects in '$out'"; exit 1; }

# What the source says wrong of patient and study its results say too.
if [[ -n $source ]] && has dciodvfy; then
    first=$(find "$source" -type f | sort | head -1)
    { dciodvfy "$first" 2>&1 || true; } | { grep '^Error' || true; } >> "$scratch/allowed"
fi

while IFS=$'\t' read -r path kind space; do
    name=$(basename "$path")
    if has dciodvfy; then
        { dciodvfy "$path" 2>&1 || true; } | { grep '^Error' || true; } | { grep -vFf "$scratch/allowed" || true; } \
            > "$scratch/said"
        told "dciodvfy $name ($kind)" "$(wc -l < "$scratch/said")" "$scratch/said"
    fi
    case $kind-$space in
        SR-*)
            if has dsrdump; then
                bad=0; dsrdump "$path" > /dev/null 2> "$scratch/said" || bad=1
                told "dsrdump $name" $bad "$scratch/said"
            fi
            if has java && [[ -e $pixelmed ]]; then
                java "${enough[@]}" -cp "$pixelmed" com.pixelmed.validate.DicomSRValidator "$path" > "$scratch/all" 2>&1 || true
                grep -q 'Found Root Template TID_1500' "$scratch/all" || echo 'Error: no template 1500' >> "$scratch/all"
                { grep '^Error' "$scratch/all" || true; } > "$scratch/said"
                told "PixelMed $name" "$(wc -l < "$scratch/said")" "$scratch/said"
            fi
            if has tid1500reader; then
                bad=0
                tid1500reader --inputDICOM "$path" --outputMetadata "$scratch/sr.json" > "$scratch/said" 2>&1 || bad=1
                grep -q '"Probability"' "$scratch/sr.json" 2> /dev/null || bad=1
                told "tid1500reader $name" $bad "$scratch/said"
            fi ;;
        SEG-series | PM-series) # dcmqi knows no slides, and no sheared grids
            if [[ $kind == SEG ]]; then tool=segimage2itkimage; else tool=paramap2itkimage; fi
            if has $tool; then
                bad=0; rm -rf "$scratch/itk"; mkdir "$scratch/itk"
                $tool --inputDICOM "$path" --outputDirectory "$scratch/itk" -t nii > "$scratch/said" 2>&1 || bad=1
                "$python" - "$scratch/itk" "$path" "$source" >> "$scratch/said" 2>&1 <<'END' || bad=1
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.misc import is_dicom

(image,) = Path(sys.argv[1]).glob("*.nii*")
made = pydicom.dcmread(sys.argv[2], stop_before_pixels=True)
frames = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in made.PerFrameFunctionalGroupsSequence]
spacing = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
if sys.argv[3]:  # the source itself, unless its images have many frames
    files = [path for path in Path(sys.argv[3]).rglob("*") if path.is_file() and is_dicom(path)]
    slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    slices = [header for header in slices if "ImagePositionPatient" in header]
    if slices:
        frames, spacing = [header.ImagePositionPatient for header in slices], slices[0].PixelSpacing
grid = nibabel.load(image).affine
origin = grid[:3, 3] * (-1, -1, 1)
off = np.linalg.norm(np.array(frames, float) - origin, axis=1).min()
assert off < 1e-3, f"origin {origin} is that of no slice"
across, down = np.linalg.norm(grid[:3, :2], axis=0)
assert np.allclose((down, across), np.array(spacing, float), atol=1e-4), f"spacing {down} x {across}, not {spacing}"
END
                told "$tool $name" $bad "$scratch/said"
            fi ;;
    esac
done < "$scratch/objects"

if [[ -n $source ]] && has dcentvfy; then
    { cut -f1 "$scratch/objects"; find "$source" -type f; } > "$scratch/files"
    { xargs -d '\n' dcentvfy < "$scratch/files" 2>&1 || true; } | { grep '^Error' || true; } > "$scratch/said"
    told "dcentvfy against $source" "$(wc -l < "$scratch/said")" "$scratch/said"
fi

[[ ${#absent[@]} -eq 0 ]] || echo "not asked, for they are not installed: ${absent[*]}"
exit $failed
