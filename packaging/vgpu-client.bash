# SPDX-License-Identifier: Apache-2.0
# Completion of vgpu-client for bash.
_vgpu_client() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local options='--channel --socket --share --dir --timeout --in-place --json --quiet --verbose
        --device --pool --priority --vm-id --seconds --mode --depth --help --usage --version'
    local commands='VECTOR_ADD MATRIX_MUL REDUCE GPU_INFO PING info doctor bench'
    local path addresses=

    # bash splits --option=value at the equals sign.
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    COMPREPLY=()
    case $previous in
    --share | --dir)
        mapfile -t COMPREPLY < <(compgen -d -- "$current")
        compopt -o filenames 2>/dev/null
        return
        ;;
    --channel)
        mapfile -t COMPREPLY < <(compgen -W 'auto window file' -- "$current")
        return
        ;;
    --socket)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        compopt -o filenames 2>/dev/null
        return
        ;;
    --mode)
        mapfile -t COMPREPLY < <(compgen -W 'poll sleep wake batch copy memcpy idle file all' -- "$current")
        return
        ;;
    --priority)
        mapfile -t COMPREPLY < <(compgen -W 'low medium high' -- "$current")
        return
        ;;
    --device)
        for path in /sys/bus/pci/devices/*/class; do
            [[ -r $path && $(<"$path") == 0x1200* ]] || continue
            path=${path%/class}
            addresses+=" ${path##*/}"
        done
        mapfile -t COMPREPLY < <(compgen -W "$addresses" -- "$current")
        return
        ;;
    --timeout | -t | --pool | --vm-id | --seconds | --depth)
        return
        ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    else
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current")
    fi
}
complete -F _vgpu_client vgpu-client
