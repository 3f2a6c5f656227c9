_instruct_lit() {
  local line="${COMP_LINE:0:COMP_POINT}" word found
  COMPREPLY=()
  word="${line##*[[:space:]]}"
  while IFS= read -r found; do
    [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && found="${found#"${word%=*}="}"
    COMPREPLY+=("$found")
  done < <(instruct-lit completion words "$line" 2>/dev/null)
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
  return 0
}
_instruct_lit_python() {
  [[ ${COMP_LINE:0:COMP_POINT} == *" -m instruct_lit"* ]] && _instruct_lit
}
complete -o default -F _instruct_lit instruct-lit
complete -o bashdefault -o default -F _instruct_lit_python python python3
