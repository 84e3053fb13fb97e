# A Slurm of one node on this machine, for single_node.sh: functions that start it and take it away again.
# Debian, as root, without systemd. Everything it writes lies below $node, everything it starts ends with
# stop_node; a Slurm that the machine may have is neither used nor changed.
# shellcheck shell=bash

node=$(mktemp -d /tmp/single-node-slurm.XXXXXX)
export SLURM_CONF=$node/slurm.conf
started=()

install_slurm() {
    command -v slurmctld slurmd slurmdbd munged mariadbd > /dev/null && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        slurm-wlm slurmdbd munge mariadb-server > "$node/apt.log" || { cat "$node/apt.log" >&2; exit 1; }
}

configure_node() {
    local host hardware
    host=$(hostname -s)
    hardware=$(slurmd -C | grep -o 'CPUs=.*' | head -1)
    chmod 755 "$node"
    mkdir -p "$node"/{state,spool,log,database}
    dd if=/dev/urandom of="$node/munge.key" bs=1 count=1024 status=none
    chmod 400 "$node/munge.key"
    cat > "$SLURM_CONF" <<CONF
ClusterName=single
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$node/munge.socket
StateSaveLocation=$node/state
SlurmdSpoolDir=$node/spool
SlurmctldPidFile=$node/slurmctld.pid
SlurmdPidFile=$node/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass=$node/munge.socket
JobAcctGatherType=jobacct_gather/none
NodeName=$host NodeAddr=127.0.0.1 $hardware State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    # submitit learns from the accounting that a job was killed; without it, it would wait for ever.
    cat > "$node/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$node/munge.socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
PidFile=$node/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=13306
StorageUser=slurm
StoragePass=slurm
CONF
    chmod 600 "$node/slurmdbd.conf"
}

# Start a daemon in the foreground of a background job: it is then ended by its process id.
start_daemon() {
    local name=$1
    shift
    "$@" > "$node/log/$name.log" 2>&1 &
    started+=($!)
}

# Wait until a command succeeds; on failure show the daemons' logs.
until_works() {
    for _ in $(seq 60); do
        "$@" > /dev/null 2>&1 && return
        sleep 1
    done
    echo "error: '$*' did not succeed within a minute; the ends of the logs in $node/log:" >&2
    tail -n 5 "$node"/log/*.log >&2
    exit 1
}

start_node() {
    start_daemon munged munged --foreground --force --key-file="$node/munge.key" --socket="$node/munge.socket" \
        --pid-file="$node/munge.pid" --log-file="$node/log/munge.log" --seed-file="$node/munge.seed"
    mariadb-install-db --no-defaults --user=root --datadir="$node/database" --auth-root-authentication-method=normal \
        > "$node/log/mariadb-install.log" 2>&1
    start_daemon mariadb mariadbd --no-defaults --user=root --datadir="$node/database" --bind-address=127.0.0.1 \
        --port=13306 --socket="$node/mariadb.socket" --pid-file="$node/mariadb.pid" \
        --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900
    database=(mariadb --no-defaults --user=root --socket="$node/mariadb.socket")
    until_works "${database[@]}" --execute "select 1"
    "${database[@]}" --execute "create user slurm@'127.0.0.1' identified by 'slurm';
        grant all on slurm_acct_db.* to slurm@'127.0.0.1';"
    start_daemon slurmdbd slurmdbd -D
    until_works sacctmgr --noheader show cluster
    sacctmgr --immediate add cluster single > "$node/log/sacctmgr.log"
    start_daemon slurmctld slurmctld -D
    until_works scontrol ping
    start_daemon slurmd slurmd -D
    until_works bash -c 'sinfo --noheader --format=%T | grep -qx idle'
}

# Ends what was started, the last first; the folder stays when the test failed, for its logs.
stop_node() {
    local code=$?
    trap - EXIT
    scancel --quiet --user=root 2> /dev/null || true
    # A step whose controller is gone would try for minutes to tell it that it has ended.
    for _ in $(seq 60); do [ -n "$(squeue --noheader 2> /dev/null)" ] || break; sleep 1; done
    for ((index = ${#started[@]} - 1; index >= 0; index--)); do end_process "${started[index]}"; done
    if [ "$code" = 0 ]; then rm -rf "$node"; else echo "the logs are kept in $node" >&2; fi
    exit "$code"
}

end_process() {
    kill "$1" 2> /dev/null || true
    for _ in $(seq 100); do kill -0 "$1" 2> /dev/null || break; sleep 0.1; done
    kill -KILL "$1" 2> /dev/null || true
    wait "$1" 2> /dev/null || true
}
