#!/bin/bash
# `stage.sh FILE COPY [FILE COPY ...]`: copy each FILE of the shared file system to COPY on the node's own disk, and
# FILE.json (names of the classes and checksums) to COPY.json. Runs once per node. Prints "CHECKSUM COPY" for each file;
# run_recipe.sh compares these lines between nodes. An existing copy is used again if its size and checksum are right,
# and FILE's times have not changed. (One of them is ctime, which nobody can set.) On failure, prints the reason and
# exits with 1.
set -euo pipefail
spare_bytes=$((2 ** 30)) # left free on the disk for others

fail() {
  echo "WARNING: ${SLURMD_NODENAME:-$HOSTNAME} cannot stage: $*" >&2
  exit 1
}

# make_private FOLDER: create FOLDER with mode 700, or check that it belongs to this user. On a shared disk, another user
# may have created a link or a folder with this name.
make_private() {
  local parent
  parent=$(dirname "$1")
  mkdir -p "$parent" || fail "cannot create $parent"
  # Even with the sticky bit, the owner of a folder may rename its entries.
  [ -z "$(find "$parent/" -maxdepth 0 -perm -0002 \( ! -perm -1000 -o ! -uid 0 ! -uid "$(id -u)" \))" ] ||
    fail "other users can replace folders in $parent. Make it root's or yours, with the sticky bit (chmod +t), or set STAGE_DIR to another folder"
  mkdir -m 700 "$1" 2>/dev/null || true
  { [ "$(stat -c '%F %u' "$1")" = "directory $(id -u)" ] && chmod 700 "$1"; } ||
    fail "$1 must be a folder of this user, got $(stat -c '%F of %U' "$1"). Remove it, or set STAGE_DIR to another folder"
}

# is_whole FILE COPY: succeed if COPY.receipt has FILE's size and times, and COPY has that size and the receipt's checksum.
is_whole() {
  local stamp sum
  [ -f "$2" ] && [ -f "$2.receipt" ] || return 1
  read -r sum stamp <"$2.receipt" || return 1
  [ "$stamp" = "$(stat -Lc '%s %.Y %.Z' "$1")" ] && [ "$(stat -c %s "$2")" = "${stamp%% *}" ] &&
    [ "$(sha256sum <"$2")" = "$sum  -" ]
}

# copy FILE COPY: copy atomically. FILE is read only once, and its checksum is computed from the bytes read.
copy() {
  local file=$1 copy=$2 size available read written
  rm -f "$copy" "$copy.part" "$copy.receipt" # free the space of an outdated copy or of a killed attempt
  size=$(stat -Lc %s "$file")
  available=$(df --output=avail -B1 "$(dirname "$copy")" | tail -n 1)
  [ "$((size + spare_bytes))" -le "$available" ] ||
    fail "$(dirname "$copy") must have $((size + spare_bytes)) bytes free for $file, got $((available))"
  read=$(tee "$copy.part" <"$file" | sha256sum) || fail "could not copy $file to $copy.part"
  written=$(sha256sum <"$copy.part")
  if [ "$(stat -c %s "$copy.part")" != "$size" ] || [ "$read" != "$written" ]; then
    fail "$copy.part differs from $file in size or checksum"
  fi
  mv "$copy.part" "$copy"
  echo "${read%% *} $(stat -Lc '%s %.Y %.Z' "$file")" >"$copy.receipt"
}

while [ $# -gt 0 ]; do
  file=$1 copy=$2
  shift 2
  make_private "$(dirname "$copy")"
  { exec 9>>"$copy.lock"; } || fail "cannot write $copy.lock"
  flock -w 3600 9 || fail "another job has held $copy.lock for an hour"
  trap 'rm -f "$copy.part"' EXIT
  if is_whole "$file" "$copy"; then
    echo "${SLURMD_NODENAME:-$HOSTNAME}: $copy already exists" >&2
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
