#!/usr/bin/env bash
# Everything there is to check and to measure on a GPU, offline: benchmarks/gpu.sh [--dry-run] [--without-plans] [stage ...]
# Each stage writes its own files under $OUT (default: benchmarks/out) at once, can be run alone, and ends itself within
# $LIMIT seconds (default: 580). An interrupted stage leaves whole files of what it had measured.
#   tests      kernels, contract, equivalence and convergence on the GPU in all dtypes
#   ceilings   copy, L2, products in bf16, tf32, float32
#   ops        every operator against its peers ($OPERATORS chooses some: each alone has the whole limit)
#   model      training step and inference, fused, eager, compiled, and the plain U-Net
#   memory     peak memory by resolution until out of memory
#   step       the trainer's step, plain U-Net and fused, eager and as CUDA graphs
#   breakdown  where device time goes, kernel by kernel
#   host       host time of the operators' calls, with and without launch plans, beside an empty autograd.Function
#   sanitizer  compute-sanitizer on small cases, and CUDA graphs against eager calls
# $INTRASENSE_COMMIT says what is measured in a copy without its history; $INTRASENSE_BENCH_NOTE under which conditions.
# --without-plans: ops and model are timed without launch plans (host always has both).
# --dry-run walks through the stages with tiny shapes, on a CPU too.
set -euo pipefail
cd "$(dirname "$0")/.."

stages=(tests ceilings ops model memory step breakdown host sanitizer)
dry=0
plans=()
chosen=()
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry=1 ;;
    --without-plans) plans=(--without-plans) ;;
    tests | ceilings | ops | model | memory | step | breakdown | host | sanitizer) chosen+=("$argument") ;;
    *) echo "gpu.sh: no stage '$argument'; there are: ${stages[*]} (and --dry-run, --without-plans)" >&2; exit 2 ;;
  esac
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${stages[@]}")

PYTHON=${PYTHON:-python}
OUT=${OUT:-benchmarks/out}
LIMIT=${LIMIT:-580}
OPERATORS=${OPERATORS:-nonlocal_attention entropy_whitening channel_decoupling bce_dice}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
device=$("$PYTHON" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')
if [ "$dry" = 1 ]; then
  export INTRASENSE_BENCH_QUICK=1
  LIMIT=3600  # a walk leaves nothing out, however slow the machine
else
  [ "$device" = cuda ] || { echo "gpu.sh: torch sees no GPU; --dry-run works without one" >&2; exit 2; }
  # Set, not unset: without nvidia-smi on PATH the tests would take the machine for one without a GPU.
  export TRITON_INTERPRET=0
  # From elsewhere: in the checkout itself the package is found without being installed, in its subprocesses not.
  (cd / && "$PYTHON" -c 'import intrasense_fast.functional' 2>/dev/null) ||
    "$PYTHON" -m pip install --no-deps --no-build-isolation -q -e .
fi
workers=()
# Most of the time is compilation: processes of their own share it, where pytest-xdist is installed.
! "$PYTHON" -c 'import xdist' 2>/dev/null || workers=(-n "${WORKERS:-$(nproc)}" --dist worksteal)

# limited SIGNAL SECONDS COMMAND...: the signal at the limit, so that what was measured is written; SIGKILL 15 s later.
limited() { local signal=$1 seconds=$2; shift 2; timeout --foreground -s "$signal" -k 15 "$seconds" "$@"; }

# compiled SECONDS NAME...: call every path of the benchmark files once, in parallel, which fills the compilers' caches on disk.
compiled() {
  local seconds=$1 name files=(); shift
  [ ${#workers[@]} -gt 0 ] && [ "$dry" = 0 ] || return 0
  for name in "$@"; do files+=("benchmarks/bench_$name.py"); done
  # Not in the foreground: the signal must reach every worker, or they go on compiling beside what is timed.
  timeout -s TERM -k 15 "$seconds" "$PYTHON" -m pytest -q "${workers[@]}" -k '(forward or both or inference or step) and (fused or compiled or Flex) and not graph' "${files[@]}" \
    > "$OUT/compiled.txt" 2>&1 &
  trap 'kill "$!"; exit 130' INT
  wait "$!" || true
  trap - INT
  tail -n 1 "$OUT/compiled.txt"
}

# bench NAME SECONDS: one benchmark file into $OUT/NAME.json, which appears complete or not at all.
bench() {
  local name=$1 seconds=$2 part="$OUT/.$1.part" status=0
  rm -f "$part"
  INTRASENSE_BENCH_UNTIL=$(($(date +%s) + seconds - 25)) limited TERM "$seconds" \
    "$PYTHON" -m pytest -q "benchmarks/bench_$name.py" --benchmark-only "${plans[@]}" --benchmark-columns=median,iqr,rounds \
    --benchmark-json "$part" > "$OUT/$name.txt" 2>&1 || status=$?
  [ ! -s "$part" ] || mv "$part" "$OUT/$name.json"
  rm -f "$part"
  tail -n 3 "$OUT/$name.txt"
  return "$status"
}

run_tests() {
  if [ "$dry" = 1 ]; then
    "$PYTHON" -m pytest -q --collect-only tests/kernels tests/contract tests/convergence tests/model/test_fused_model.py \
      > "$OUT/tests.txt" || { tail -n 20 "$OUT/tests.txt"; return 1; }
    tail -n 1 "$OUT/tests.txt"
    return 0
  fi
  # Whole networks first: they take longest. One thread a process, or their CPU halves wait for one another.
  OMP_NUM_THREADS=1 limited INT "$LIMIT" "$PYTHON" -m pytest -q -m '(slow or not slow) and not aot' "${workers[@]}" \
    tests/model/test_fused_model.py tests/convergence tests/kernels tests/contract --junit-xml "$OUT/tests.xml" \
    > "$OUT/tests.txt" 2>&1 || { grep -E '^(FAILED|ERROR)|^E  ' "$OUT/tests.txt" | head -n 60; tail -n 3 "$OUT/tests.txt"; return 1; }
  tail -n 3 "$OUT/tests.txt"
}
run_ceilings() {
  local quick=()
  [ "$dry" = 0 ] || quick=(--quick)
  limited INT "$LIMIT" "$PYTHON" -m benchmarks.ceilings "${quick[@]}" --out "$OUT/ceilings.json"
}
run_ops() {
  local operator status=0 from=$SECONDS left rest share
  compiled $((LIMIT / 3)) $OPERATORS
  rest=$(wc -w <<< "$OPERATORS")
  for operator in $OPERATORS; do
    left=$((LIMIT - (SECONDS - from)))
    # Attention has twice the peers of the others.
    [ "$operator" = nonlocal_attention ] && [ "$rest" -gt 1 ] && share=$((left * 45 / 100)) || share=$((left / rest))
    rest=$((rest - 1))
    bench "$operator" "$share" || status=$?
  done
  return "$status"
}
run_model() {
  local from=$SECONDS
  compiled $((LIMIT / 3)) model
  bench model $((LIMIT - (SECONDS - from)))
}
run_memory() {
  local options=(--device cuda --max-size 4096)
  [ "$dry" = 0 ] || options=(--device "$device" --dry-run)
  limited INT "$LIMIT" "$PYTHON" -m benchmarks.memory "${options[@]}" --seconds $((LIMIT - 70)) --out "$OUT/memory"
}
run_step() {
  local quick=()
  [ "$dry" = 0 ] || quick=(--dry-run)
  limited INT "$LIMIT" "$PYTHON" -m benchmarks.training_step "${quick[@]}" --out "$OUT/training_step.json" | tee "$OUT/training_step.txt"
}
run_breakdown() {
  local quick=()
  [ "$dry" = 0 ] || quick=(--dry-run)
  limited INT "$LIMIT" "$PYTHON" -m benchmarks.breakdown "${quick[@]}" --out "$OUT/breakdown.json" > "$OUT/breakdown.txt"
}
run_host() {
  local quick=()
  [ "$dry" = 0 ] || quick=(--dry-run)
  limited INT "$LIMIT" "$PYTHON" -m benchmarks.host "${quick[@]}" --out "$OUT/host.json" | tee "$OUT/host.txt"
}
run_sanitizer() {
  local quick=()
  [ "$dry" = 0 ] || quick=(--dry-run)
  limited INT "$LIMIT" "$PYTHON" -m benchmarks.sanitizer "${quick[@]}" --seconds $((LIMIT - 30)) --out "$OUT/sanitizer.json"
}

failed=()
for stage in "${chosen[@]}"; do
  echo "== $stage"
  from=$SECONDS
  "run_$stage" || failed+=("$stage")
  echo "== $stage: $((SECONDS - from)) s"
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "gpu.sh: not everything passed in: ${failed[*]}; see $OUT" >&2
  exit 1
fi
