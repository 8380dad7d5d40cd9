# SPDX-License-Identifier: Apache-2.0
# Completion of vgpu-sim for bash.
_vgpu_sim() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local options='--policy --set --load --pool --trace --seed --duration-ms --json --brief --svg
        --write-trace --progress --help --usage --version'
    local keys='policy aging_ms demand low_weight medium_weight high_weight pools long_grants seed
        duration_ms window_ms grant_us grant_ops grant_inflight grant_min_us protect_us
        protect_inflight protect_ms switch_us switch_share_percent turn_us queue_max
        stall_per_million stall_us misread_percent'

    # bash splits --option=value at the equals sign.
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    COMPREPLY=()
    case $previous in
    --policy | -P)
        mapfile -t COMPREPLY < <(compgen -W 'strict wfq fifo round-robin' -- "$current")
        return
        ;;
    --set | -s)
        mapfile -t COMPREPLY < <(compgen -W "$keys" -S = -- "$current")
        compopt -o nospace 2>/dev/null
        return
        ;;
    --svg)
        mapfile -t COMPREPLY < <(compgen -d -- "$current")
        compopt -o filenames 2>/dev/null
        return
        ;;
    --load | -l | --pool | -p | --seed | --duration-ms)
        return
        ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        compopt -o filenames 2>/dev/null
    fi
}
complete -F _vgpu_sim vgpu-sim
