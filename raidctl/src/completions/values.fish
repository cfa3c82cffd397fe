
# Values that only a running raidd knows, one a line: names of arrays, paths of their members.
function __raidctl_values
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    set -g __raidctl_offered ($program completions fish -- $words "$current" 2>/dev/null)
    test -n "$__raidctl_offered"
end
complete -c raidctl -n __raidctl_values -f -a '$__raidctl_offered'
