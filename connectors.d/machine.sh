#!/bin/sh
# What an operator wants to know of the machine that a workflow runs on. Its commands take no parameters, so the whole
# request need not be parsed: sh, df and awk are enough.
request=$(cat)

disks() {
	df -P -k | awk '
		NR > 1 && $1 ~ /^\// {
			gsub(/["\\]/, "", $6); sub(/%/, "", $5)
			printf "%s{\"mount\":\"%s\",\"free_kib\":%d,\"used_percent\":%d}", separator, $6, $4, $5
			separator = ","
		}'
}

case $request in
*'"op":"describe"'* | *'"op": "describe"'*)
	cat <<-'END'
		{"commands": [
		  {"name": "Disks", "description": "Free space of every mounted disk", "parameters": []},
		  {"name": "Load", "description": "Load averages, and how many processors share them", "parameters": []}
		]}
	END
	;;
*'"command":"Disks"'*)
	printf '{"disks":[%s]}\n' "$(disks)"
	;;
*'"command":"Load"'*)
	read -r one five fifteen _ </proc/loadavg
	printf '{"load":[%s,%s,%s],"processors":%s}\n' "$one" "$five" "$fifteen" "$(nproc)"
	;;
*)
	echo '{"error": {"error_code": "command_not_found", "message": "it has Disks and Load"}}'
	;;
esac
