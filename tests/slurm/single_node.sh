#!/usr/bin/env bash
# A sweep over a real Slurm of one node: a cell is killed, reported, and computed by the same command again.
#   make test-slurm
# Needs Debian, root and some minutes; installs slurm-wlm, slurmdbd, munge and mariadb-server where they lack.
# What is checked, in this order:
#   1. four jobs, one a cell, two of which want the same cell: it is computed once;
#   2. a job that is killed in the middle of its cell is reported when all others have ended, as a failure;
#   3. the same command again computes this cell alone and leaves every finished record as it was;
#   4. the records merge into a table.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "error: Slurm's daemons are started here as root; run this as root" >&2; exit 2; }
source tests/slurm/node.sh
trap stop_node EXIT

outputs=$node/outputs
cells=$outputs/slurm
sweep=(.venv/bin/python repro/run.py -m method=dense,teal_uniform sparsity=0.4,0.5
    suite.limit=4 suite.documents=4 calibration.sequences=4 calibration.length=128
    logger=none experiment_name=slurm "output_dir=$outputs" "cache_dir=$node/plans"
    hydra/launcher=submitit_slurm hydra.launcher.timeout_min=30 hydra.launcher.cpus_per_task=1)

check() {
    local what=$1
    shift
    if "$@"; then echo "ok: $what"; else echo "NOT OK: $what" >&2; exit 1; fi
}

# How many jobs of an array say this in their logs: said_by ARRAY TEXT
said_by() { { grep -l -- "$2" "$cells/.submitit/$1"_*/*_log.err || true; } | wc -l; }

# Name, time of the last change and content of every finished cell's files.
finished_cells() {
    find "$cells" -path "$cells/.submitit" -prune -o \( -name record.json -o -name items.json \) -print0 | sort -z |
        xargs -0 --no-run-if-empty sh -c 'stat -c "%n %y" "$@"; sha256sum "$@"' -
}

# Kill the third of the four jobs as soon as it is in the middle of its cell: kill_third_cell > ARRAY
# Its processes get the signal from here, as from a kernel out of memory: what scancel sends may arrive seconds
# later, when so short a cell is finished.
kill_third_cell() {
    local log job processes
    until log=$(grep -ls -- "teal_uniform-0.4 →" "$cells"/.submitit/*_2/*_log.err); do sleep 0.1; done
    job=$(basename "$(dirname "$log")")
    processes=$(scontrol listpids "$(squeue --noheader --jobs="$job" --format=%A)" | awk '$3 ~ /^[0-9]+$/ {print $1}')
    # shellcheck disable=SC2086 # a word each
    kill -KILL $processes
    echo "${job%_2}"
}

install_slurm
configure_node
start_node
sinfo

echo "== the sweep, one cell of which is killed"
kill_third_cell > "$node/first-array" &
killer=$!
code=0
"${sweep[@]}" 2> "$node/first.err" || code=$?
wait "$killer"
first=$(cat "$node/first-array")
sacct --allocations --jobs="$first" --format=JobID,JobName,State,Elapsed,ExitCode
cat "$node/first.err"
check "the command ends with exit code 1 (it was $code)" test "$code" = 1
check "the killed cell is reported" grep -q "^error: .*teal_uniform sparsity=0.4.*its job ended without a result" "$node/first.err"
check "the others were waited for and are counted" grep -qx "3 finished, 0 out of reach, 1 failed" "$node/first.err"
check "two cells are finished: both dense jobs wanted the same one" \
    test "$(find "$cells" -name record.json | wc -l)" = 2
check "one of the two jobs computed it" test "$(said_by "$first" "llama-mini-dense-0 →")" = 1
check "the other one took its record" test "$(said_by "$first" "llama-mini-dense-0 is finished already")" = 1
finished_cells > "$node/before"

echo "== the same command again"
"${sweep[@]}" 2> "$node/second.err"
second=$(basename "$(find "$cells/.submitit" -name '*_3_submitted.pkl' -newer "$node/before")" _3_submitted.pkl)
sacct --allocations --jobs="$second" --format=JobID,JobName,State,Elapsed,ExitCode
check "only the killed cell is computed" test "$(said_by "$second" " → ")" = 1
check "it is the one that was killed" test "$(said_by "$second" "teal_uniform-0.4 →")" = 1
check "three jobs took finished records" test "$(said_by "$second" "is finished already")" = 3
finished_cells > "$node/after"
check "no finished record was touched" test -z "$(grep -vxFf "$node/after" "$node/before")"
check "three cells are finished" test "$(find "$cells" -name record.json | wc -l)" = 3

echo "== the table of the records"
.venv/bin/python -m wisparse.repro.tables table1 --records "$cells" --output "$node/table1" | sed -n '1,/^$/p;/^|/p'
check "the table has every cell" test "$(wc -l < "$node/table1.csv")" = 4
echo "all checks passed"
