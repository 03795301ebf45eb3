# Commands of the connector `files`.

# Digest of a text (in UTF-8), in lower-case hexadecimal.
# @param text str The text
# @param algorithm str=sha256 md5, sha1, sha224, sha256, sha384, sha512 or b2
cmd_Checksum() {
  local digest
  case $PARAM_algorithm in
    md5 | sha1 | sha224 | sha256 | sha384 | sha512 | b2) ;;
    *)
      printf '{"error": {"error_code": "unknown_algorithm", "message": %s}}' "$(json_string "no such algorithm: $PARAM_algorithm")"
      return 1
      ;;
  esac
  digest=$(param text | "${PARAM_algorithm}sum")
  printf '{"algorithm": "%s", "digest": "%s"}' "$PARAM_algorithm" "${digest%% *}"
}

# Size and free space, in bytes, of the file system that a path is on.
# @param path str=/ A path on this machine
cmd_DiskUsage() {
  local figures mount size used free
  figures=$(df --block-size=1 --output=size,used,avail,target -- "$PARAM_path") || return
  read -r size used free mount <<<"${figures##*$'\n'}"
  printf '{"mount": %s, "size": %s, "used": %s, "free": %s}' "$(json_string "$mount")" "$size" "$used" "$free"
}
