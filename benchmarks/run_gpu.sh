#!/usr/bin/env bash
# One command for a GPU machine without network: install, build with CUDA, test, measure, check.
#
#     OUT=gpu_output bash benchmarks/run_gpu.sh
#
# The parts' limits add up to less than 590 seconds, and the most telling parts come first. A part that fails
# or runs out of its time is noted in summary.txt and the next one starts; after a build that failed, or made
# no CUDA kernels, nothing is measured and the exit status is 1. Wheels of the dependencies (diffusers and what
# it needs, cmake, ninja, pytest) are taken from .whl/ where that folder exists.
set -u -o pipefail
cd "$(dirname "$0")/.."
OUT=$(mkdir -p "${OUT:-gpu_output}" && cd "${OUT:-gpu_output}" && pwd)
PYTHON=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-8}
SUMMARY=$OUT/summary.txt
: > "$SUMMARY"

part() { # part NAME SECONDS COMMAND...: run it, keep its log, note how it went
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    timeout --kill-after=2 "$limit" "$@" > "$OUT/$name.log" 2>&1
    status=$?
    case $status in
        0) printf '%-16s ok      %4d s\n' "$name" $((SECONDS - began)) ;;
        124 | 137) printf '%-16s TIMEOUT %4d s\n' "$name" $((SECONDS - began)) ;;
        *) printf '%-16s FAILED  %4d s, status %d, see %s.log\n' "$name" $((SECONDS - began)) $status "$name" ;;
    esac | tee -a "$SUMMARY"
    return $status
}

install_wheels() {
    local wheels=(.whl/*.whl)
    [ -e "${wheels[0]}" ] || { echo "no .whl/ folder: what is installed is used"; return 0; }
    # torch and triton of this machine stay as they are: their wheels, if carried, are left out.
    local chosen=()
    for wheel in "${wheels[@]}"; do
        case ${wheel##*/} in torch-*|triton-*|nvidia_*) ;; *) chosen+=("$wheel") ;; esac
    done
    "$PYTHON" -m pip install --no-index --no-deps --no-compile -q "${chosen[@]}"
}
build() {
    install_wheels || return 1
    PARASAMPLE_NATIVE=1 PARASAMPLE_CUDA=1 "$PYTHON" -m pip install --no-index --no-deps --no-build-isolation \
        --no-compile -e . || return 1
    "$PYTHON" -c '
from parasample.kernels import faces
cuda = [status for status in faces() if status.face == "cuda"]
print(*cuda, sep="\n")
raise SystemExit(not all(status.available for status in cuda))'
}
# Uninitialised reads are seen only where torch hands out fresh memory for every tensor.
sanitize() {
    command -v compute-sanitizer > /dev/null || { echo "compute-sanitizer is not installed"; return 1; }
    local tool failed=0
    for tool in memcheck racecheck initcheck; do
        echo "== $tool"
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 25 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            --target-processes all "$PYTHON" -m pytest -q -x -m gpu tests/kernels \
            -k "test_matches_reference and cuda and not large and (W1 or W7 or K2 or D63 or D2051 or fp32-bf16)" || failed=$?
    done
    return $failed
}

export -f install_wheels build sanitize
export PYTHON OUT
part build 120 bash -c build || { echo "not built: see $OUT/build.log" | tee -a "$SUMMARY"; exit 1; }
RUN=("$PYTHON" -c 'import sys; from parasample.cli import main; sys.exit(main())')
nvidia-smi > "$OUT/nvidia-smi.log" 2>&1 || true

part gpu_tests 95 "$PYTHON" -m pytest -q -m gpu tests
part kernels 85 "${RUN[@]}" bench kernels --ops picard_update --output "$OUT/results"
part window_sweep 120 "$PYTHON" benchmarks/window_sweep.py --output "$OUT/results"
part sanitizer 76 bash -c sanitize
part other_kernels 35 "${RUN[@]}" bench kernels --ops drift_aggregate dense_update --output "$OUT/results"
part doctor 15 "${RUN[@]}" doctor
part rounds 35 "${RUN[@]}" bench rounds --quick --output "$OUT/results"
echo "logs, rows and pictures: $OUT" | tee -a "$SUMMARY"
exit 0
