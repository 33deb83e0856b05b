#!/bin/bash
# `stage.sh FILE COPY [FILE COPY ...]`, once per node: each COPY, on the node's own disk, becomes the FILE of the shared
# file system, with its side file FILE.json. Prints "CHECKSUM COPY" for each; run_recipe.sh compares the nodes'. A copy
# that is there is used again if size, times (ctime too, which nobody can set) and checksum are still
# right. Any failure ends with a reason and code 1.
set -euo pipefail
spare_bytes=$((2 ** 30)) # left to others on the disk

fail() {
  echo "WARNING: ${SLURMD_NODENAME:-$HOSTNAME} cannot stage: $*" >&2
  exit 1
}

# make_private FOLDER: mode 700 and ours. Anybody may have made a link or a folder of this name on a shared disk before.
make_private() {
  local parent
  parent=$(dirname "$1")
  mkdir -p "$parent" || fail "$parent cannot be made"
  # The owner of a folder may rename what is in it, whatever the sticky bit says.
  [ -z "$(find "$parent/" -maxdepth 0 -perm -0002 \( ! -perm -1000 -o ! -uid 0 ! -uid "$(id -u)" \))" ] ||
    fail "others could replace folders in $parent: make it root's or yours, with the sticky bit (chmod +t), or set STAGE_DIR to another"
  mkdir -m 700 "$1" 2>/dev/null || true
  { [ "$(stat -c '%F %u' "$1")" = "directory $(id -u)" ] && chmod 700 "$1"; } ||
    fail "$1 must be a folder of this user, found $(stat -c '%F of %U' "$1"): remove it, or set STAGE_DIR to another"
}

# is_whole FILE COPY: the receipt beside the copy names size and time of this FILE, and the copy has that size and the
# receipt's checksum.
is_whole() {
  local stamp sum
  [ -f "$2" ] && [ -f "$2.receipt" ] || return 1
  read -r sum stamp <"$2.receipt" || return 1
  [ "$stamp" = "$(stat -Lc '%s %.Y %.Z' "$1")" ] && [ "$(stat -c %s "$2")" = "${stamp%% *}" ] &&
    [ "$(sha256sum <"$2")" = "$sum  -" ]
}

# copy FILE COPY: atomic, and read once from the shared file system: the checksum is that of what was read.
copy() {
  local file=$1 copy=$2 size available read written
  rm -f "$copy" "$copy.part" "$copy.receipt" # what is of no use, or was left by a SIGKILL, must not take the space
  size=$(stat -Lc %s "$file")
  available=$(df --output=avail -B1 "$(dirname "$copy")" | tail -n 1)
  [ "$((size + spare_bytes))" -le "$available" ] ||
    fail "$(dirname "$copy") must have $((size + spare_bytes)) bytes free for $file, found $((available))"
  read=$(tee "$copy.part" <"$file" | sha256sum) || fail "$file could not be written to $copy.part"
  written=$(sha256sum <"$copy.part")
  if [ "$(stat -c %s "$copy.part")" != "$size" ] || [ "$read" != "$written" ]; then
    fail "$copy.part must be $file, found another size or checksum"
  fi
  mv "$copy.part" "$copy"
  echo "${read%% *} $(stat -Lc '%s %.Y %.Z' "$file")" >"$copy.receipt"
}

while [ $# -gt 0 ]; do
  file=$1 copy=$2
  shift 2
  make_private "$(dirname "$copy")"
  { exec 9>>"$copy.lock"; } || fail "$copy.lock cannot be written"
  flock -w 3600 9 || fail "another job has held $copy.lock for an hour"
  trap 'rm -f "$copy.part"' EXIT
  if is_whole "$file" "$copy"; then
    echo "${SLURMD_NODENAME:-$HOSTNAME}: $copy is there already" >&2
  else
    copy "$file" "$copy"
    echo "${SLURMD_NODENAME:-$HOSTNAME}: $file copied to $copy" >&2
  fi
  if [ -f "$file.json" ]; then
    cp "$file.json" "$copy.json.part"
    mv "$copy.json.part" "$copy.json"
  fi
  read -r sum _ <"$copy.receipt"
  echo "$sum $copy"
  exec 9>&-
done
