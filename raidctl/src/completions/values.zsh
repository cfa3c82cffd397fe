# Values that only a running raidd knows, one a line: names of arrays, paths of their members.
_raidctl_values() {
    local -a found ready open
    local line value
    found=(${(f)"$("${(Q)words[1]/#\~\//$HOME/}" completions zsh -- "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)"})
    (( $#found )) || return 1
    for line in "${found[@]}"; do
        value=${line%%$'\t'*}
        value=${value//\\/\\\\}
        value=${value//:/\\:}:${line#*$'\t'}
        if [[ ${line%%$'\t'*} == *= ]]; then
            open+=("$value")
        else
            ready+=("$value")
        fi
    done
    (( $#open )) && _describe -t values value open -S ''
    (( $#ready )) && _describe -t values value ready
    return 0
}
