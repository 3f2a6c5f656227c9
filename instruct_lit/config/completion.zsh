_instruct_lit() {
  local -a found=("${(@f)$(instruct-lit completion words "$LBUFFER" 2>/dev/null)}")
  [[ -n $found[1] ]] && compadd -Q -S '' -- $found || _files
}
_instruct_lit_python() { [[ $LBUFFER == *" -m instruct_lit"* ]] && _instruct_lit || _default }
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _instruct_lit instruct-lit
compdef _instruct_lit_python python python3
