# Runs one command of a bash connector: bash command.sh FILE NAME. Started by host.py; see there.

# param NAME: writes a parameter's value, whatever its size; fails when it was not given.
param() {
  local value="PARAM_${1//[^A-Za-z0-9_]/_}" file="PARAMFILE_${1//[^A-Za-z0-9_]/_}"
  if [[ -n ${!file-} ]]; then
    cat -- "${!file}"
  else
    [[ -v $value ]] && printf '%s' "${!value}"
  fi
}

# json_string TEXT: writes a text as a JSON string, quotes included.
json_string() {
  local text=$1 code escaped name
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  for code in {1..31}; do
    printf -v escaped '\\x%02x' "$code"
    printf -v escaped "$escaped"
    [[ $text == *"$escaped"* ]] || continue
    printf -v name '\\u%04x' "$code"
    text=${text//"$escaped"/"$name"}
  done
  printf '"%s"' "$text"
}

_command=cmd_$2
source "$1"
"$_command"
