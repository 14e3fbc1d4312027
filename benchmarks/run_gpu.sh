#!/usr/bin/env bash
# One command for a GPU machine without network: install, build with CUDA, test, check, measure.
#
#     OUT=gpu_output bash benchmarks/run_gpu.sh
#
# Takes under ten minutes. A part that fails or runs out of its time is noted in summary.txt and the next one
# starts; the exit status is 0 unless nothing could be installed. Wheels of the dependencies (diffusers and
# what it needs, cmake, ninja, pytest) are taken from .whl/ where that folder exists.
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
    timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
    status=$?
    case $status in
        0) printf '%-16s ok      %4d s\n' "$name" $((SECONDS - began)) ;;
        124) printf '%-16s TIMEOUT %4d s\n' "$name" $((SECONDS - began)) ;;
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
install_parasample() {
    PARASAMPLE_NATIVE=1 PARASAMPLE_CUDA=1 "$PYTHON" -m pip install --no-index --no-deps --no-build-isolation \
        --no-compile -e . ||
        "$PYTHON" -m pip install --no-index --no-deps --no-build-isolation --no-compile -e .
}
sanitize() {
    command -v compute-sanitizer > /dev/null || { echo "compute-sanitizer is not installed"; return 0; }
    local tool
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
            "$PYTHON" -m pytest -q -x -m gpu tests/kernels -k "cuda and not large" --maxfail 1 || return $?
    done
}

export -f install_wheels install_parasample sanitize
export PYTHON OUT
part wheels 60 bash -c install_wheels
part build 120 bash -c install_parasample || { echo "not installed: see $OUT/build.log" | tee -a "$SUMMARY"; exit 1; }
RUN=("$PYTHON" -c 'import sys; from parasample.cli import main; sys.exit(main())')

nvidia-smi > "$OUT/nvidia-smi.log" 2>&1 || true
part doctor 60 "${RUN[@]}" doctor
part gpu_tests 120 "$PYTHON" -m pytest -q -m gpu tests
part demo 100 "${RUN[@]}" demo --output "$OUT/demo"
part overhead 60 "${RUN[@]}" bench overhead --output "$OUT/results"
part sweep_ddim 60 "${RUN[@]}" plan --sampler ddim --steps 100 --plot "$OUT/plan_ddim.png" --json
part sweep_ddpm 60 "${RUN[@]}" plan --sampler ddpm --steps 1000 --plot "$OUT/plan_ddpm.png" --json
part rounds 100 "${RUN[@]}" bench rounds --quick --output "$OUT/results"
part frontier 60 "${RUN[@]}" bench frontier --quick --output "$OUT/results"
part kernels 60 "$PYTHON" benchmarks/kernels.py
part plan_check 90 "$PYTHON" benchmarks/check_plan.py
part sanitizer 120 bash -c sanitize
echo "logs, rows and pictures: $OUT" | tee -a "$SUMMARY"
exit 0
