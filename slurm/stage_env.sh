#!/usr/bin/env bash
# Unpacks a Python environment to this node's own disk, or removes it; common.sh runs it once per node.
#   slurm/stage_env.sh unpack ARCHIVE FOLDER
#   slurm/stage_env.sh remove FOLDER
set -uo pipefail

say() { echo "[${SLURMD_NODENAME:-$(hostname)}] $*"; }

# Folders of jobs that are over: SLURM ended those before they could clean up.
remove_stale() {
    local old job answer
    for old in "$(dirname "$1")"/segformer_spark-env-*; do
        job="${old##*-}"
        [[ -d $old && $old != "$1" && -O $old && $job =~ ^[0-9]+$ ]] || continue
        if answer=$(squeue --noheader --format=%T --job "$job" 2>&1); then
            [[ -z $answer ]] || continue
        elif [[ $answer != *'Invalid job id'* ]]; then
            continue
        fi
        rm -rf "$old" && say "removed $old of a job that is over"
    done
}

unpack() {
    local archive="$1" folder="$2" needed free started=$SECONDS
    if [[ -e $folder/.complete ]]; then
        say "$folder is complete already"
        return
    fi
    rm -rf "$folder"
    mkdir -p "$(dirname "$folder")" || return
    remove_stale "$folder"
    needed=$(stat --format=%s "$archive") || return
    free=$(df --output=avail --block-size=1 "$(dirname "$folder")" | tail -n 1)
    if ((needed > free)); then
        say "the environment ($((needed >> 20)) MiB) does not fit on $(dirname "$folder") ($((free >> 20)) MiB free)"
        return 1
    fi
    mkdir -m 700 "$folder" || return
    # The archive's last file: tar takes one that is cut off for a short one.
    if ! tar --extract --file "$archive" --directory "$folder" --strip-components=1 || [[ ! -e $folder/.installed ]]; then
        say "$archive could not be unpacked to $folder"
        rm -rf "$folder"
        return 1
    fi
    touch "$folder/.complete"
    say "$folder: $((needed >> 20)) MiB unpacked in $((SECONDS - started)) s"
}

case "${1:-}" in
    unpack) unpack "$2" "$3" ;;
    remove) rm -rf "$2" ;;
    *) echo "usage: $0 unpack ARCHIVE FOLDER | remove FOLDER" >&2 && exit 2 ;;
esac
