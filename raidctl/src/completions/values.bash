# Values that only a running raidd knows, one a line: names of arrays, paths of their members. Readline has cut the line at `=` and
# `:`, too; what has no blank between is joined again, and what is offered lacks what stands before the last cut.
_raidctl_values() {
    local line=${COMP_LINE:0:COMP_POINT} words=() word head found value i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i == COMP_CWORD)); then
            word=${line#"${line%%[^[:blank:]]*}"}
        fi
        if ((i == 0)) || [[ $line == [[:blank:]]* ]]; then
            words+=("$word")
        else
            words[${#words[@]} - 1]+=$word
        fi
        line=${line#*"$word"}
    done
    for i in "${!words[@]}"; do
        word=${words[i]//\\/}
        word=${word#[\"\']}
        words[i]=${word%[\"\']}
    done
    found=$("${words[0]/#\~\//"$HOME"/}" completions bash -- "${words[@]}" 2>/dev/null) || return 1
    [[ -n $found ]] || return 1
    word=${words[${#words[@]} - 1]}
    head=${word%"${2//\\/}"}
    COMPREPLY=()
    while IFS=$'\t' read -r value _; do
        if [[ $value == *= ]]; then
            compopt -o nospace 2>/dev/null
        fi
        if [[ $value == /* ]]; then
            compopt -o filenames 2>/dev/null
            COMPREPLY+=("${value#"$head"}")
        else
            printf -v value %q "${value#"$head"}"
            COMPREPLY+=("$value")
        fi
    done <<<"$found"
}
