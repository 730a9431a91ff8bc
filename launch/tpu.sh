#!/usr/bin/env bash
# One Cloud TPU slice: create it, install this package on its hosts, start a command on all of them,
# start it again after a preemption, take the slice down. See launch/README.md.

set -euo pipefail

usage() {
  cat <<'END'
launch/tpu.sh ACTION [--option=value ...] [-- COMMAND ...]

actions
  create   ask for the slice and wait until it is ready
  install  copy this repository to every host and install it there
  start    start COMMAND on every host, in the background
  watch    create, install, start; then look after it: a slice that is lost is made again and COMMAND
           started again, until it ends. Exit status: 0 done, 2 the user's mistake, 1 anything else
  status   the state of the slice, and on its first host the state of COMMAND
  log      the last lines of COMMAND's output on the first host
  stop     SIGTERM to COMMAND on every host: it finishes its step, saves and ends
  delete   take the slice down

options
  --name=NAME          of the slice (needed)
  --zone=ZONE          such as us-west4-a (needed)
  --topology=v5e:4x4   chip and shape: v5e, v5p or v6e (needed by create and watch)
  --project=PROJECT    gcloud's own setting if left out
  --runtime=VERSION    software of the hosts; by the chip if left out
  --mode=queued        "queued" (queued resources: waits until there is room) or "direct"
  --spot               cheaper; may be preempted at any time
  --reserved           of a reservation
  --folder=PATH        on the hosts, where the package goes (~/lrm_jax). Work folders must lie on a
                       disk that all hosts see, and that outlives the slice, for it to be resumed
  --every=60           seconds between two looks
  --starts=100         watch: start COMMAND at most so often
  --dry_run            print every command and run none

COMMAND is one of the package's doors, as in
  -- python -m lrm_jax.train --config=configs/reward_qwen3vl_8b.py --workdir=/mnt/shared/run
END
}

fail() {
  echo "error: $*" >&2
  exit 2
}

action=${1:-}
[[ $# -gt 0 ]] && shift
name="" zone="" topology="" project="" runtime="" mode=queued folder="lrm_jax"
spot="" reserved="" every=60 starts=100 dry_run=""
command=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --mode=*) mode=${1#*=} ;;
    --folder=*) folder=${1#*=} ;;
    --every=*) every=${1#*=} ;;
    --starts=*) starts=${1#*=} ;;
    --spot) spot=1 ;;
    --reserved) reserved=1 ;;
    --dry_run) dry_run=1 ;;
    --help | -h) usage && exit 0 ;;
    --)
      shift
      command=("$@")
      break
      ;;
    *) fail "unknown option $1; see launch/tpu.sh --help" ;;
  esac
  shift
done
case $action in
  "" | --help | -h | help) usage && exit 0 ;;
  create | install | start | watch | status | log | stop | delete) ;;
  *) fail "unknown action $action: create, install, start, watch, status, log, stop or delete" ;;
esac
[[ $name ]] || fail "--name is needed"
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$name: small letters, digits and dashes"
[[ $zone ]] || fail "--zone is needed"
[[ $mode == queued || $mode == direct ]] || fail "--mode=$mode: queued or direct"
[[ $every =~ ^[0-9]+$ && $starts =~ ^[1-9][0-9]*$ ]] || fail "--every and --starts take numbers"
if [[ $action == start || $action == watch ]]; then
  [[ ${#command[@]} -gt 0 ]] || fail "give the command after --"
fi

where=("--zone=$zone")
[[ $project ]] && where+=("--project=$project")

# Prints a command as the shell would take it, then runs it unless this is a dry run.
run() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# What a command prints; in a dry run it is shown and answers with the first argument.
ask() {
  local answer=$1
  shift
  if [[ $dry_run ]]; then
    run "$@" >&3
    echo "$answer"
  else
    "$@" 2>/dev/null || true
  fi
}
exec 3>&1

accelerator_of_topology() {
  [[ $topology =~ ^(v5e|v5p|v6e):([0-9]+(x[0-9]+)+)$ ]] ||
    fail "--topology=$topology: CHIP:SHAPE, such as v5e:4x4, v5p:2x2x4 or v6e:4x4"
  local chip=${BASH_REMATCH[1]} shape=${BASH_REMATCH[2]} count=1 size
  for size in ${shape//x/ }; do count=$((count * size)); done
  case $chip in
    v5e) accelerator="v5litepod-$count" standard=v2-alpha-tpuv5-lite ;;
    v5p) accelerator="v5p-$((2 * count))" standard=v2-alpha-tpuv5 ;; # this name counts cores
    v6e) accelerator="v6e-$count" standard=v2-alpha-tpuv6e ;;
  esac
}

state() {
  if [[ $mode == queued ]]; then
    ask ACTIVE gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
      "--format=value(state.state)"
  else
    ask READY gcloud compute tpus tpu-vm describe "$name" "${where[@]}" "--format=value(state)"
  fi
}

request() {
  accelerator_of_topology
  local kind=()
  [[ $spot ]] && kind+=(--spot)
  [[ $reserved ]] && kind+=(--reserved)
  if [[ $mode == queued ]]; then
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
      --accelerator-type="$accelerator" --runtime-version="${runtime:-$standard}" \
      ${kind[@]+"${kind[@]}"}
  else
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
      --accelerator-type="$accelerator" --version="${runtime:-$standard}" ${kind[@]+"${kind[@]}"}
  fi
}

ready() {
  local found
  while true; do
    found=$(state)
    case $found in
      ACTIVE | READY) return ;;
      FAILED | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED)
        echo "the slice is $found before it was ready" >&2
        return 1
        ;;
    esac
    echo "waiting for the slice: ${found:-not there yet}" >&2
    sleep "$every"
  done
}

delete() {
  if [[ $mode == queued ]]; then # --force takes the slice with it
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

on_hosts() { # on_hosts WORKER SHELL-COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

install() {
  local root archive
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive="${TMPDIR:-/tmp}/lrm_jax-$name.tar.gz"
  run tar -czf "$archive" --exclude=.git --exclude=runs --exclude=.venv --exclude=__pycache__ \
    -C "$root" . &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:lrm_jax.tar.gz" "${where[@]}" \
      --worker=all &&
    on_hosts all "mkdir -p $folder && tar -xzf lrm_jax.tar.gz -C $folder && cd $folder && \
python3 -m venv .venv && .venv/bin/pip install --quiet --upgrade pip && \
.venv/bin/pip install --quiet --editable '.[tpu]'"
}

# The command stands in a file of its own on the hosts, so that quotes survive the way there. Its
# exit status goes to a file: that the process is gone does not say how it ended.
start() {
  local words
  printf -v words '%q ' "${command[@]}"
  local script="cd $folder && export PATH=\$PWD/.venv/bin:\$PATH LRM_JAX_PROCESSES=auto
trap 'kill -TERM \$child' TERM
${words% } & child=\$!
wait \$child; status=\$?
while kill -0 \$child 2>/dev/null; do wait \$child; status=\$?; done
echo \$status > run.status"
  local encoded
  encoded=$(printf '%s\n' "$script" | base64 | tr -d '\n')
  [[ $dry_run ]] && printf '# run.sh on every host:\n%s\n' "$script" | sed '2,$s/^/#   /'
  on_hosts all "rm -f $folder/run.status && echo $encoded | base64 -d > $folder/run.sh && \
(setsid nohup bash $folder/run.sh > $folder/run.log 2>&1 < /dev/null & \
echo \$! > $folder/run.pid)"
}

stop() {
  on_hosts all "cd $folder && kill -TERM \$(cat run.pid)"
}

# "running", or the exit status of the command on the first host; empty if the host does not answer.
command_state() {
  ask 0 gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=0 --command="cd $folder && \
if [ -f run.status ]; then cat run.status; elif kill -0 \$(cat run.pid) 2>/dev/null; \
then echo running; else echo lost; fi"
}

show_log() {
  on_hosts 0 "tail -n 40 $folder/run.log"
}

# Makes whatever there is of the slice into a running one; "first" takes one that runs as it is.
renew() {
  local found
  found=$(state)
  [[ $dry_run ]] && found=""
  while true; do
    case $found in
      "") # a queue takes every request that is right; directly, there may be no room now
        if ! request && [[ $mode == queued ]]; then
          echo "the slice was refused" >&2
          return 1
        fi
        ;;
      ACTIVE | READY)
        [[ $1 == first ]] && return
        delete && request
        ;;
      ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | CREATING) ;; # asked for already
      *)
        echo "the slice is $found: making it again" >&2
        delete && request
        ;;
    esac
    ready && return
    found=$(state)
    sleep "$every"
  done
}

watch() {
  local number status found
  for ((number = 1; number <= starts; number++)); do
    renew "$([[ $number == 1 ]] && echo first || echo again)" || return 1
    if ! { install && start; }; then # lost while it was being set up
      sleep "$every"
      continue
    fi
    while true; do
      status=$(command_state)
      case $status in
        0) return 0 ;;
        running) ;;
        143) # SIGTERM: it saved. A preemption's, or somebody's `stop`: the slice will tell
          sleep "$every"
          found=$(state)
          if [[ $found == ACTIVE || $found == READY ]]; then
            echo "stopped: the same command resumes" >&2
            return 1
          fi
          break
          ;;
        2) echo "the command was refused; see launch/tpu.sh log" >&2 && return 2 ;;
        lost) break ;; # a host that started anew, say
        "") # no answer: is the slice still there?
          found=$(state)
          [[ $found == ACTIVE || $found == READY ]] || break
          ;;
        *) echo "the command ended with status $status; see launch/tpu.sh log" >&2 && return 1 ;;
      esac
      sleep "$every"
    done
    echo "start $number was lost; the checkpoints go on from there" >&2
  done
  echo "gave up after $starts starts" >&2
  return 1
}

case $action in
  create) request && ready ;;
  install) install ;;
  start) start ;;
  watch) watch ;;
  status) echo "slice: $(state)" && echo "command: $(command_state)" ;;
  log) show_log ;;
  stop) stop ;;
  delete) delete ;;
esac
