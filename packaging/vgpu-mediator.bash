# SPDX-License-Identifier: Apache-2.0
# bash completion for vgpu-mediator(8)
# shellcheck shell=bash

_vgpu_mediator() {
    local word=${COMP_WORDS[COMP_CWORD]} option=${COMP_WORDS[COMP_CWORD - 1]}

    # bash makes three words of --pools=shared: the option, "=" and the value.
    if [[ $option == = ]]; then
        option=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $word == = ]]; then
        word=
    fi
    COMPREPLY=()
    case $option in
    -c | --config | -l | --log) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
    -s | --share | --state-dir) mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
    --pools) mapfile -t COMPREPLY < <(compgen -W 'shared independent' -- "$word") ;;
    --log-format) mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$word") ;;
    --log-level) mapfile -t COMPREPLY < <(compgen -W 'error warning info debug' -- "$word") ;;
    --hold-until | --prefer-vm) ;; # a number
    *)
        mapfile -t COMPREPLY < <(compgen -W '--config --check-config --check-gpu --share --state-dir
            --pools --log --log-format --log-level --cleanup --test-mode --hold-until --prefer-vm
            --help --usage --version' -- "$word")
        ;;
    esac
}

complete -o filenames -F _vgpu_mediator vgpu-mediator
