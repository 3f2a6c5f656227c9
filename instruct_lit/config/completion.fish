complete -c instruct-lit -a '(instruct-lit completion words (commandline -cp) 2>/dev/null)'
for program in python python3
  complete -c $program -n 'string match -q "* -m instruct_lit*" -- (commandline -cp)' \
    -a '(instruct-lit completion words (commandline -cp) 2>/dev/null)'
end
