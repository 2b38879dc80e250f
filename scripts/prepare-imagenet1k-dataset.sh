#!/usr/bin/env bash
# Copies ImageNet-1k as webdataset shards (1,024 for training, 64 for validation, some 150 GB) from the Hugging Face hub
# to $GCS_DATASET_DIR/imagenet-1k-wds, a bucket or a local folder. The same command continues after a stop.
#
#   export HF_TOKEN=...               # of an account that accepted the licence of timm/imagenet-1k-wds
#   export GCS_DATASET_DIR=gs://...   # or a local folder
#   bash scripts/prepare-imagenet1k-dataset.sh [SHARD...]     # some shards only, as imagenet1k-validation-00.tar
#
# JOBS (8) shards are copied at a time. Sizes and sha256 are compared with the hub's and kept in index.json beside the
# shards, so that `maejax pack --verify` can check them again. On the way to a bucket, shards pass through $STAGING_DIR.
set -euo pipefail

HF_ENDPOINT=${HF_ENDPOINT:-https://huggingface.co}
HOME_PAGE=$HF_ENDPOINT/datasets/timm/imagenet-1k-wds
JOBS=${JOBS:-8}
ATTEMPTS=${ATTEMPTS:-8}
PAUSE=${PAUSE:-2} # seconds before the second attempt; doubled before each further one

fail() { # EXIT_CODE MESSAGE
    echo "prepare-imagenet1k-dataset: $2" >&2
    exit "$1"
}

# curl with the token, which must not appear among the arguments of a process: printf is part of bash, not a process.
# When redirected to another host, such as the hub's storage, curl leaves the token out.
hub() {
    curl --config <(printf 'header = "Authorization: Bearer %s"\n' "$HF_TOKEN") --silent --show-error \
        --connect-timeout 30 --speed-limit 1000 --speed-time 60 "$@"
}

bucket() {
    if command -v gcloud > /dev/null; then gcloud storage "$@"; else gsutil -q "$@"; fi
}

size_of() { if [[ -f $1 ]]; then wc -c < "$1" | tr -d ' '; else echo 0; fi; }

sha256_of() { if command -v sha256sum > /dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -c 1-64; }

is_right() { [[ -z $sha256 || $(sha256_of "$1") == "$sha256" ]]; }

# Ask the hub about a shard; sets `size` and `sha256` (empty if the hub does not give it). 401 and 403 hold for all shards:
# exit code 255 lets xargs start no other.
ask() {
    local name=$1 headers code attempt pause=$PAUSE
    for ((attempt = 1; ; attempt++)); do
        headers=$(hub --head --write-out 'code: %{http_code}\n' "$HOME_PAGE/resolve/main/$name") || true
        headers=$(tr -d '\r' <<< "$headers" | tr '[:upper:]' '[:lower:]')
        code=$(sed -n 's/^code: //p' <<< "$headers")
        case $code in
            2?? | 3??) break ;;
            401) fail 255 "the hub does not know HF_TOKEN (401); make one at $HF_ENDPOINT/settings/tokens" ;;
            403) fail 255 "the account of HF_TOKEN has no access (403); accept the licence at $HOME_PAGE" ;;
            404) fail 1 "$name is not at $HOME_PAGE (404)" ;;
        esac
        ((attempt < ATTEMPTS)) || fail 1 "$name: the hub answers ${code:-nothing}; start the same command again later"
        sleep "$pause" && pause=$((pause * 2))
    done
    size=$(sed -nE 's/^x-linked-size: *([0-9]+).*/\1/p' <<< "$headers")
    if [[ -z $size && $code == 2?? ]]; then size=$(sed -nE 's/^content-length: *([0-9]+).*/\1/p' <<< "$headers"); fi
    sha256=$(sed -nE 's/^x-linked-etag: *"?([0-9a-f]{64})"?.*/\1/p' <<< "$headers")
    [[ -n $size ]] || fail 1 "$name: the hub does not tell its size; start the same command again later"
}

# Download to $1 from the byte it ends at, and compare with `size` and `sha256`.
download() {
    local part=$1 name=$2 attempt pause=$PAUSE
    for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
        if (($(size_of "$part") > size)); then rm -f "$part"; fi
        if (($(size_of "$part") == size)) || hub --fail --location --continue-at - --output "$part" \
            "$HOME_PAGE/resolve/main/$name"; then
            if (($(size_of "$part") == size)); then
                is_right "$part" && return
                echo "$name: its sha256 is not the hub's; downloading it anew" >&2
                rm -f "$part"
            fi
        fi
        sleep "$pause" && pause=$((pause * 2))
    done
    fail 1 "$name: not downloaded after $ATTEMPTS attempts; start the same command again"
}

size_in_bucket() { awk -v url="$1" '$NF == url { print $1 }'; } # from what `ls -l` prints

# Bring one shard to its place. Prints a line when it is there.
copy() {
    local count=$1 name=$2 size sha256 local_path=$work/$2
    ask "$name"
    if [[ $target == gs://* ]]; then
        if [[ $(size_in_bucket "$target/$name" < "$work/bucket.txt") == "$size" ]]; then
            note "$count" "$name" "is there"
            return
        fi
    elif [[ -f $local_path ]]; then
        if (($(size_of "$local_path") == size)) && { known "$name" || is_right "$local_path"; }; then
            note "$count" "$name" "is there"
            return
        fi
        mv "$local_path" "$local_path.part" # perhaps truncated: continues from its end, and starts again if that is wrong
    fi
    download "$local_path.part" "$name"
    mv "$local_path.part" "$local_path"
    if [[ $target == gs://* ]]; then
        bucket cp "$local_path" "$target/$name" || fail 1 "$name: cannot be copied to $target"
        [[ $(bucket ls -l "$target/$name" | size_in_bucket "$target/$name") == "$size" ]] ||
            fail 1 "$name: has another size in $target; start the same command again"
        rm "$local_path"
    fi
    note "$count" "$name" "copied"
}

known() { grep -qsFx "$1"$'\t'"$size"$'\t'"$sha256" "$work/shards.tsv"; }

note() {
    known "$2" || printf '%s\t%s\t%s\n' "$2" "$size" "$sha256" >> "$work/shards.tsv"
    echo "$1 $2 $3, $((size / 1000)) kB"
}

write_index() {
    local name size sha256 separator=''
    {
        echo '{"shards": ['
        # The last line about a shard counts.
        while IFS=$'\t' read -r name size sha256; do
            printf '%s{"name": "%s", "bytes": %s%s}' "$separator" "$name" "$size" "${sha256:+, \"sha256\": \"$sha256\"}"
            separator=$',\n'
        done < <(awk -F '\t' '{ last[$1] = $0 } END { for (name in last) print last[name] }' "$work/shards.tsv" | sort)
        printf '\n]}\n'
    } > "$work/index.json.part"
    mv "$work/index.json.part" "$work/index.json"
}

target=${GCS_DATASET_DIR:-}
target=${target%/}/imagenet-1k-wds
if [[ $target == gs://* ]]; then work=${STAGING_DIR:-${TMPDIR:-/tmp}/imagenet-1k-wds}; else work=$target; fi

if [[ ${1:-} == --copy ]]; then # how xargs calls this script
    copy "$2" "$3"
    exit
fi

[[ -n ${GCS_DATASET_DIR:-} ]] || fail 2 "GCS_DATASET_DIR is missing; export a bucket gs://... or a local folder"
[[ -n ${HF_TOKEN:-} ]] || fail 2 "HF_TOKEN is missing; make one at $HF_ENDPOINT/settings/tokens and export it"
[[ $HF_TOKEN =~ ^[A-Za-z0-9_.-]+$ ]] || fail 2 "HF_TOKEN holds other signs than letters, digits, _ . and -"
[[ $JOBS =~ ^[1-9][0-9]*$ ]] || fail 2 "JOBS=$JOBS: give at least 1"
if (($#)); then names=("$@"); else names=(imagenet1k-train-{0000..1023}.tar imagenet1k-validation-{00..63}.tar); fi

export HF_TOKEN GCS_DATASET_DIR
mkdir -p "$work"
if [[ $target == gs://* ]]; then
    bucket ls -l "$target/" > "$work/bucket.txt" 2> "$work/bucket.err" ||
        grep -qi 'matched no objects' "$work/bucket.err" ||
        fail 2 "$target cannot be listed: $(tail -n 1 "$work/bucket.err")"
fi
(ask "${names[0]}") || { code=$?; exit $((code == 255 ? 2 : code)); } # report a wrong token once, before all downloads

if ! for i in "${!names[@]}"; do echo "$((i + 1))/${#names[@]} ${names[i]}"; done |
    xargs -P "$JOBS" -n 2 bash "$0" --copy; then
    fail 1 "not all of ${#names[@]} shards are there; start the same command again to continue"
fi
write_index
if [[ $target == gs://* ]]; then
    bucket cp "$work/index.json" "$target/index.json" || fail 1 "index.json cannot be copied to $target"
    echo "${#names[@]} shards are in $target"
else
    echo "${#names[@]} shards are in $target; maejax pack --verify $target reads them all again"
fi
