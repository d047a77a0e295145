# Download the pictures of a URL list into tar shards with img2dataset:  fetch_pictures.sh LIST PARTIAL OUT FLAGS...
#
# The shards are written to PARTIAL. It stays after an interruption, and the next call continues with the shards that it
# lacks; PARTIAL is renamed to OUT when all shards are there. A picture that cannot be downloaded is no error: it is
# counted in the *_stats.json of its shard. Files are kept as they were served: written again by img2dataset, they would
# lose orientation, 16-bit grey and the colours of CMYK and transparent pictures (src/dreamllm/data/images.py).
set -eu
list=$1 partial=$2 out=$3
shift 3
PATH="$PWD/.img2dataset/bin:$PATH"
command -v img2dataset > /dev/null || { echo "img2dataset is not installed: make downloader" >&2; exit 1; }
export NO_ALBUMENTATIONS_UPDATE=1
mkdir -p "$partial"
env -u PYTHONPATH img2dataset --url_list "$list" --input_format jsonl.gz --url_col url \
    --output_format webdataset --output_folder "$partial" --number_sample_per_shard 10000 \
    --disable_all_reencoding True --thread_count 64 --retries 2 --incremental_mode incremental "$@"
ls "$partial"/*.tar > /dev/null || { echo "img2dataset wrote no shard to $partial; see above" >&2; exit 1; }
rm -rf "$out"
mv "$partial" "$out"
