"""Measure the data path at the size of the paper: planning of batches, and the start of a training on many shards.

    python benchmarks/web_scale.py                                             # some 3 CPU-minutes
    python benchmarks/web_scale.py --rows 64 --shards 500 --documents 100      # the same, small

planning: documents that one process plans per CPU second, for batches of 512 packed rows of 2048 tokens, alone and as
the first of several that share the work, without the pictures of its rows; beside it, how many 128 GPUs consume. The
other processes are simulated: what they send is pickled before the clock starts. Their batches are compared.

start: a list of 10,000 shards with 1000 pairs each, served by HTTP on this machine from a process that makes the bytes
of a shard when it is asked for. CPU seconds and memory until the first batch, and whether a process that starts again
at a saved position, with an empty cache, goes on with the same documents. Beside it, shards on the disk whose tar
headers are read instead of a list.

The documents are stand-ins with the sizes of public sets: captions of 12 words; pages of ten sentences with four
images (MMC4-core has 4.1 images and 330 tokens on average, arXiv 2304.06939). The tokenizer is trained on their words:
BPE with 32,000 tokens and byte fallback, which like LLaMA's does not split a text into words first.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import pickle
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dreamllm.data import shards
from dreamllm.data.document import Document, Picture, Text
from dreamllm.data.images import encode_png
from dreamllm.data.layout import TokenSequence, Vocabulary, lay_out
from dreamllm.data.mixture import Mixture, pair_mode
from dreamllm.data.remote import ShardCache
from dreamllm.data.stream import Position, StepBatch, Stream, start_position

CONTEXT = 2048
TOKENS_PER_SECOND = {"measured, 35 % MFU": 7390, "aim, 50 % MFU": 10560}  # of one H200 at stage II, docs/speed.md
GPUS = 128


# ---- stand-ins -----------------------------------------------------------------------------------------------------


@lru_cache
def lexicon(size: int = 40_000) -> np.ndarray:
    """Words of one to five syllables, the frequent ones short. (size,)"""
    generator = np.random.default_rng(0)
    syllables = [a + b + c for a in "bcdfghjklmnprstvwz" for b in "aeiou" for c in ("", "n", "r", "s", "t")]
    lengths = 1 + np.minimum(4, np.log10(np.arange(1, size + 1)).astype(int))
    return np.array(["".join(generator.choice(syllables, length)) for length in lengths])


def words(generator: np.random.Generator, count: int) -> str:
    """Words drawn with Zipf's frequencies."""
    ranks = np.exp(generator.random(count) * np.log(len(lexicon()))).astype(int) - 1
    return " ".join(lexicon()[ranks])


def tokenizer(size: int = 32_000) -> PreTrainedTokenizerFast:
    """A tokenizer like LLaMA's, trained on the stand-in words."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        lexicon().tolist(), trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def vocabulary() -> Vocabulary:
    """The vocabulary of the paper's model: 256 patches of a read image, 64 dream queries of a generated one."""
    made = tokenizer()
    size = len(made)

    def encode(text: str) -> list[int]:  # as `DreamLLMProcessor.vocabulary`
        return made(text, add_special_tokens=False, split_special_tokens=True).input_ids

    return Vocabulary(encode, 1, 2, size, size + 1, size + 2, size + 3, size + 4, size + 5, 256, 64)


def pair(number: int) -> Document:
    """A caption of 12 words and its image."""
    text = words(np.random.default_rng([1, number]), 12)
    return Document(f"pair-{number}", "pair", (Text(text), Picture(shards.PLACEHOLDER)))


def page(number: int) -> Document:
    """Ten sentences of 11 words with four images."""
    generator = np.random.default_rng([2, number])
    parts: list[Text | Picture] = [Text(words(generator, 11)) for _ in range(10)]
    for place in (9, 7, 4, 2):
        parts.insert(place, Picture(shards.PLACEHOLDER))
    return Document(f"page-{number}", "interleaved", tuple(parts))


KINDS: dict[str, Callable[[int], Document]] = {"pairs": pair, "pages": page}


# ---- planning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneOfMany(Stream):
    """The stream of the first of several processes, of which the others are simulated.

    plans: of all documents.  sent: what the others send, pickled, by the first document of a call; a first run fills it
    """

    plans: dict[tuple[str, int], Any] = field(default_factory=dict)
    sent: dict[tuple[str, int], bytes] = field(default_factory=dict)

    def _plan(self, documents: list, own: dict) -> Mapping:
        found = super()._plan(documents, own)
        first = documents[0].key
        if first not in self.sent:
            missing = {one.key: self.plans[one.key] for one in documents if one.key not in found}
            self.sent[first] = pickle.dumps(missing)
        return {**found, **pickle.loads(self.sent[first])}


def without_pictures(record: shards.Record) -> Document:
    """A document with placeholders for its pictures."""
    return shards.load(record, decode=False)


def make_stream(mixture: Mixture, words: Vocabulary, rows: int, position: Position, **options: Any) -> Stream:
    """A stream of joint batches, which makes nothing of them."""

    def sequences(document: Document, epoch: int) -> list[TokenSequence]:
        return lay_out(document, words, pair_mode("joint", document, epoch, 0), CONTEXT)

    kind = OneOfMany if "plans" in options else Stream
    return kind(mixture, sequences, lambda rows: None, rows, CONTEXT, position, load=without_pictures, **options)


def timed(stream: Stream, count: int) -> tuple[list[StepBatch], list[float]]:
    """The first batches of a stream, and the CPU seconds of each."""
    batches, seconds = [], []
    begin = time.process_time()
    for batch in islice(stream, count):
        seconds.append(time.process_time() - begin)
        batches.append(batch)
        begin = time.process_time()
    return batches, seconds


def first_of(share: int, kind: str, paths: list[Path], words: Vocabulary, rows: int, **options: Any) -> Stream:
    """The stream of the first of `share` processes."""
    mixture = Mixture({kind: paths}, {kind: 1.0}, seed=0)
    local = slice(0, rows // share)
    return make_stream(mixture, words, rows, start_position(mixture), local_rows=local, **options)


def planning(rows: int, processes: list[int], batches: int) -> None:
    """Print the table of planning."""
    known = vocabulary()
    print(f"planning, {rows} rows of {CONTEXT} tokens\n")
    print(
        "| documents | tokens each | processes | CPU-s per batch | documents per CPU-s | "
        + " | ".join(f"{GPUS} GPUs ({what}) need" for what in TOKENS_PER_SECOND)
        + " |\n"
        + "| --- " * (5 + len(TOKENS_PER_SECOND))
        + "|"
    )
    for kind, make in KINDS.items():
        length = np.mean(
            [
                sum(map(len, lay_out(make(n), known, mode, CONTEXT)))
                for n in range(50)
                for mode in (["joint"] if kind == "pages" else ["comprehension", "creation"])
            ]
        )
        with tempfile.TemporaryDirectory() as folder:
            count = int(rows * CONTEXT * (batches + 1.7) / length)
            paths = shards.write(map(make, range(count)), Path(folder) / kind)

            plans: dict = {}

            def remember(local: dict, plans: dict = plans) -> dict:
                plans.update(local)
                return local

            wanted, _ = timed(first_of(1, kind, paths, known, rows, all_gather=remember), batches)
            for share in processes:
                sent: dict = {}
                options = {"plans": plans, "sent": sent} if share > 1 else {}
                if share > 1:
                    timed(first_of(share, kind, paths, known, rows, **options), batches)
                made, seconds = timed(first_of(share, kind, paths, known, rows, **options), batches)
                if [(one.rows, one.position) for one in made] != [(one.rows, one.position) for one in wanted]:
                    sys.exit(f"{kind}: the first of {share} processes plans other batches than one alone")
                drawn = made[-1].position.drawn[kind] - made[0].position.drawn[kind]
                cpu = sum(seconds[1:])  # without the first, which fills the buffer
                need = [f"{rate * GPUS / length:,.0f}" for rate in TOKENS_PER_SECOND.values()]
                row = [kind, f"{length:.0f}", share, f"{cpu / (batches - 1):.3f}", f"{drawn / cpu:,.0f}", *need]
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


# ---- start ---------------------------------------------------------------------------------------------------------


def shard_bytes(number: int, documents: int) -> bytes:
    """A shard of pairs as `shards.write` lays it out; all have one length."""
    file = io.BytesIO()
    png = encode_png(shards.PLACEHOLDER)
    ranks = (number * documents + np.arange(12 * documents) ** 2) % len(lexicon())
    with tarfile.open(fileobj=file, mode="w:") as tar:
        for place in range(documents):
            text = " ".join(lexicon()[ranks[12 * place : 12 * place + 12]])
            parts = [{"text": text, "role": ""}, {"image": "0.png", "role": ""}]
            header = {"id": f"{number}-{place}", "kind": "pair", "parts": parts, "meta": {}}
            for suffix, content in (("0.png", png), ("json", json.dumps(header).encode().ljust(512))):
                about = tarfile.TarInfo(f"{place:08d}.{suffix}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return file.getvalue()


def serve(documents: int, pipe: Connection) -> None:
    """Serve the shards /NUMBER.tar on a free port of this machine, which is sent through `pipe`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            content = shard_bytes(int(self.path.strip("/").removesuffix(".tar")), documents)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


def memory() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 1e6


def client(arguments: argparse.Namespace) -> None:
    """One process of a training: print what starting took and a digest of the documents of each batch, as JSON."""
    known = vocabulary()
    before, wall, memory_before = time.process_time(), time.perf_counter(), memory()
    paths = [Path(arguments.client)] if arguments.client.endswith(".json") else shards.find(arguments.client)
    cache = ShardCache(Path(arguments.cache), arguments.cache_mb * 10**6)
    mixture = Mixture({"pairs": paths}, {"pairs": 1.0}, seed=0, cache=cache)
    indexed = time.process_time() - before
    position = Position.from_json(json.loads(arguments.position)) if arguments.position else start_position(mixture)
    batches: list[Any] = []
    said: dict[str, Any] = {"documents": mixture.sizes()["pairs"]}
    for batch in islice(make_stream(mixture, known, arguments.rows, position), arguments.batches):
        if not batches:
            said |= {"first": time.process_time() - before, "wall": time.perf_counter() - wall}
            said |= {"memory": memory() - memory_before}
        ids = "\n".join(one.document_id for row in batch.rows for one in row)
        batches.append((hashlib.sha256(ids.encode()).hexdigest(), batch.position.to_json()))
    stored = sum(path.stat().st_size for path in Path(arguments.cache).glob("*.tar")) / 1e6
    print(json.dumps(said | {"index": indexed, "batches": batches, "stored": stored}))


def start(arguments: argparse.Namespace) -> None:
    """Print the table of starting."""

    def run(where: Path, cache: Path, position: Any = None) -> dict[str, Any]:
        command = [sys.executable, __file__, "--client", str(where), "--cache", str(cache)]
        command += ["--rows", str(arguments.rows), "--cache-mb", str(arguments.cache_mb), "--batches", "4"]
        command += ["--position", json.dumps(position)] if position else []
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    documents, number = arguments.documents, arguments.shards
    print(f"\nstart, {number:,} shards of {documents:,} pairs, cache of {arguments.cache_mb} MB\n")
    print(
        "| shards | documents | CPU-s to number them | CPU-s to first batch | wall s | memory, MB | in the cache, MB |"
    )
    print("| --- " * 7 + "|")

    def show(what: str, said: dict[str, Any]) -> None:
        print(
            f"| {what} | {said['documents']:,} | {said['index']:.2f} | {said['first']:.2f} | {said['wall']:.1f} | "
            f"{said['memory']:.0f} | {said['stored']:.0f} |",
            flush=True,
        )

    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(documents, there), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        address, size = f"http://127.0.0.1:{here.recv()}", len(shard_bytes(0, documents))
        listed = [{"url": f"{address}/{place}.tar", "nsamples": documents, "filesize": size} for place in range(number)]
        (folder / "pairs.json").write_text(json.dumps({"shardlist": listed}))
        whole = run(folder / "pairs.json", folder / "cache")
        show("listed, by HTTP", whole)
        again = run(folder / "pairs.json", folder / "other", whole["batches"][1][1])
        show("the same, started again after 2 batches, empty cache", again)
        for place in range(arguments.local):
            (folder / f"local-{place:05d}.tar").write_bytes(shard_bytes(place, documents))
        show(f"{arguments.local} on the disk, by their tar headers", run(folder / "local", folder / "none"))
    server.terminate()
    same = [one[0] for one in again["batches"][:2]] == [one[0] for one in whole["batches"][2:]]
    print(f"\nthe next 2 batches after the restart have {'the same' if same else 'OTHER'} documents")
    if not same:
        sys.exit(1)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=["planning", "start"], choices=["planning", "start"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--batches", type=int, default=3, help="of planning")
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=1000, help="per shard")
    parser.add_argument("--local", type=int, default=200, help="shards on the disk")
    parser.add_argument("--cache-mb", type=int, default=500)
    parser.add_argument("--client", default="", help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="", help=argparse.SUPPRESS)
    parser.add_argument("--position", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        client(arguments)
        return
    if "planning" in arguments.tables:
        planning(arguments.rows, arguments.processes, arguments.batches)
    if "start" in arguments.tables:
        start(arguments)


if __name__ == "__main__":
    main()
