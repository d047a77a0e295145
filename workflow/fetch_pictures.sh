# Fetch the pictures of an address list with img2dataset into tar shards:  fetch_pictures.sh LIST PARTIAL OUT FLAGS...
#
# PARTIAL stays after an interruption, and the next call goes on with the shards that it does not hold yet; OUT appears
# when all are there. Pictures that are gone are counted in the *_stats.json of their shard, and are no error.
set -eu
list=$1 partial=$2 out=$3
shift 3
PATH="$PWD/.img2dataset/bin:$PATH"
command -v img2dataset > /dev/null || { echo "img2dataset is not there: make downloader" >&2; exit 1; }
export NO_ALBUMENTATIONS_UPDATE=1
mkdir -p "$partial"
env -u PYTHONPATH img2dataset --url_list "$list" --input_format jsonl.gz --url_col url \
    --output_format webdataset --output_folder "$partial" --number_sample_per_shard 10000 \
    --resize_mode keep_ratio --resize_only_if_bigger True --encode_quality 95 \
    --thread_count 64 --retries 2 --incremental_mode incremental "$@"
ls "$partial"/*.tar > /dev/null || { echo "not one shard came: $partial" >&2; exit 1; }
rm -rf "$out"
mv "$partial" "$out"
