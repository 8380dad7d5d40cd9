# SPDX-License-Identifier: Apache-2.0
# Completion of vgpu-admin for bash: commands and options as the program tells them,
# VMs, pools and devices from the database.

# The program with the options that choose its database, as they stand on the line.
_vgpu_admin_ask() {
    local -a words=("${COMP_WORDS[0]}")
    local i

    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --database | --config)
            # bash splits --option=value at the equals sign.
            [[ ${COMP_WORDS[i + 1]} == = ]] && ((i++))
            words+=("${COMP_WORDS[i]/#=/${COMP_WORDS[i - 1]}}" "${COMP_WORDS[i + 1]}")
            ((i++))
            ;;
        esac
    done
    "${words[@]}" "$@" 2>/dev/null </dev/null
}

# Names may have blanks: they are offered quoted.
_vgpu_admin_offer() {
    local word

    COMPREPLY=()
    while IFS= read -r word; do
        [[ -n $word && $word == "$current"* ]] && COMPREPLY+=("$(printf '%q' "$word")")
    done
}

_vgpu_admin_options() {
    grep -oE -- '(^| |,)--[a-z][a-z-]+' <<<"$(_vgpu_admin_ask "$@" --help | cut -c1-29)" |
        tr -d ' ,' | sort -u
}

# A value of the option in front: 0 when there was one to offer for.
_vgpu_admin_value() {
    case $1 in
    --pool) _vgpu_admin_offer < <(_vgpu_admin_ask complete pools) ;;
    --vm) _vgpu_admin_offer < <(_vgpu_admin_ask complete vms) ;;
    --vm-id)
        # A new number at register-vm, a registered VM's elsewhere.
        [[ $command == register-vm ]] || _vgpu_admin_offer < <(_vgpu_admin_ask complete vms)
        ;;
    --device) _vgpu_admin_offer < <(_vgpu_admin_ask complete devices) ;;
    --priority) _vgpu_admin_offer < <(printf '%s\n' low medium high) ;;
    --state) _vgpu_admin_offer < <(printf '%s\n' active quarantined) ;;
    --sharing) _vgpu_admin_offer < <(printf '%s\n' shared independent) ;;
    --policy) _vgpu_admin_offer < <(printf '%s\n' strict wfq fifo round-robin default) ;;
    --enabled | --demand) _vgpu_admin_offer < <(printf '%s\n' yes no) ;;
    --channels) _vgpu_admin_offer < <(printf '%s\n' file,window file window xen none) ;;
    --format) _vgpu_admin_offer < <(printf '%s\n' chrome csv) ;;
    --toolstack) _vgpu_admin_offer < <(printf '%s\n' libvirt xapi xl none) ;;
    --action) _vgpu_admin_offer < <(_vgpu_admin_ask complete commands) ;;
    --database | --config | --socket | --output)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        compopt -o filenames 2>/dev/null
        ;;
    --owner)
        [[ $command != update-vm ]] || _vgpu_admin_offer < <(printf '%s\n' default)
        ;;
    --uuid | --name | --mode | --address | --sessions | --device-memory | \
        --operation-limit | --weight | --request-rate | --request-burst | --device-share | \
        --queue-depth | --inflight-ops | --inflight-kib | --aging | --vms-max | --device-memory-max | --description | --reason | \
        --timeout | --last | --since | --limit | --actor | --connect) ;;
    *) return 1 ;;
    esac
}

# The word number $1 of the command.
_vgpu_admin_word() {
    case $command:$1 in
    remove-vm:1 | show-vm:1 | set-pool:1 | set-priority:1 | set-limit:1 | set-vm-id:1 | \
        update-vm:1 | quarantine:1 | release:1 | publish:1 | start-vm:1 | stop-vm:1)
        _vgpu_admin_offer < <(_vgpu_admin_ask complete vms)
        ;;
    set-pool:2 | show-pool:1 | remove-pool:1 | set-pool-name:1 | update-pool:1 | bind-device:1)
        _vgpu_admin_offer < <(_vgpu_admin_ask complete pools)
        ;;
    set-priority:2) _vgpu_admin_offer < <(printf '%s\n' low medium high) ;;
    withdraw-device:1 | return-device:1) _vgpu_admin_offer < <(_vgpu_admin_ask complete devices) ;;
    bind-device:2) _vgpu_admin_offer < <(_vgpu_admin_ask complete devices; echo none) ;;
    create-pool:1) _vgpu_admin_offer < <(printf '%s\n' {A..Z}) ;;
    test-mode:1) _vgpu_admin_offer < <(printf '%s\n' on off answer) ;;
    bind-vfio:1 | unbind-vfio:1)
        _vgpu_admin_offer < <(ls /sys/bus/pci/devices 2>/dev/null)
        ;;
    backup:1 | restore:1)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        compopt -o filenames 2>/dev/null
        ;;
    esac
}

_vgpu_admin() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local command='' count=0 i

    # bash splits --option=value at the equals sign.
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --json | --quiet | -q | --yes | -y | --follow | --force | --help | --usage | --version) ;;
        --*)
            [[ ${COMP_WORDS[i + 1]} == = ]] && ((i++))
            ((i++))
            ;;
        =) ;;
        *)
            if [[ -z $command ]]; then
                command=${COMP_WORDS[i]}
            else
                ((count++))
            fi
            ;;
        esac
    done
    COMPREPLY=()
    _vgpu_admin_value "$previous" && return
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_vgpu_admin_options ${command:+"$command"})" -- "$current")
    elif [[ -z $command ]]; then
        _vgpu_admin_offer < <(_vgpu_admin_ask complete commands)
    else
        _vgpu_admin_word $((count + 1))
    fi
}
complete -F _vgpu_admin vgpu-admin
