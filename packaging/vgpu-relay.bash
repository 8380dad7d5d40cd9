# SPDX-License-Identifier: Apache-2.0
# bash completion for vgpu-relay(8)
# shellcheck shell=bash

_vgpu_relay() {
    local word=${COMP_WORDS[COMP_CWORD]} option=${COMP_WORDS[COMP_CWORD - 1]}

    # bash makes three words of --log-format=json: the option, "=" and the value.
    if [[ $option == = ]]; then
        option=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $word == = ]]; then
        word=
    fi
    COMPREPLY=()
    case $option in
    -c | --config | -d | --domains | -l | --log | --xenbus) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
    --log-format) mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$word") ;;
    --log-level) mapfile -t COMPREPLY < <(compgen -W 'error warning info debug' -- "$word") ;;
    *)
        mapfile -t COMPREPLY < <(compgen -W '--config --domains --log --log-format --log-level
            --worker --xenbus --help --usage --version' -- "$word")
        ;;
    esac
}

complete -o filenames -F _vgpu_relay vgpu-relay
