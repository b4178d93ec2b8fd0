#!/usr/bin/env bash
# Everything there is to check and to measure on a GPU, offline: benchmarks/gpu.sh [--dry-run] [stage ...]
# Each stage writes its own JSON under $OUT (default: benchmarks/out) at once and can be run alone.
#   tests     kernels and contract on the GPU in all dtypes
#   ceilings  copy, L2, products in bf16, tf32, float32
#   ops       every operator against its peers
# --dry-run walks through the stages with tiny shapes, on a CPU too.
set -euo pipefail
cd "$(dirname "$0")/.."

stages=(tests ceilings ops)
dry=0
chosen=()
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry=1 ;;
    tests | ceilings | ops) chosen+=("$argument") ;;
    *) echo "gpu.sh: no stage '$argument'; there are: ${stages[*]} (and --dry-run)" >&2; exit 2 ;;
  esac
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${stages[@]}")

PYTHON=${PYTHON:-python}
OUT=${OUT:-benchmarks/out}
mkdir -p "$OUT"
if [ "$dry" = 0 ]; then
  "$PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "gpu.sh: torch sees no GPU; --dry-run works without one")'
  unset TRITON_INTERPRET
  "$PYTHON" -c 'import intrasense_fast' 2>/dev/null || "$PYTHON" -m pip install --no-deps --no-build-isolation -q -e .
fi

run_tests() {
  if [ "$dry" = 1 ]; then
    "$PYTHON" -m pytest -q --collect-only tests/kernels tests/contract > "$OUT/tests.txt"
    tail -n 1 "$OUT/tests.txt"
    return
  fi
  "$PYTHON" -m pytest -q -m 'not aot' tests/kernels tests/contract --junit-xml "$OUT/tests.xml"
}
run_ceilings() { "$PYTHON" -m benchmarks.ceilings --out "$OUT/ceilings.json"; }
run_ops() {
  local file status=0
  [ "$dry" = 1 ] && export INTRASENSE_BENCH_QUICK=1
  for file in benchmarks/bench_*.py; do
    "$PYTHON" -m pytest -q "$file" --benchmark-only --benchmark-json "$OUT/$(basename "$file" .py).json" || status=$?
  done
  return $status
}

for stage in "${chosen[@]}"; do
  echo "== $stage"
  from=$SECONDS
  "run_$stage"
  echo "== $stage: $((SECONDS - from)) s"
done
