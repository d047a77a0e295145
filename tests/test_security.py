"""Configuration, checkpoints, data and downloads are read and never executed, as docs/threat-model.md says."""

import ast
import base64
import gzip
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file

import repository
import tiny
from dreamllm.config.reading import ConfigProblem, load
from dreamllm.data import images
from dreamllm.data.document import Document, Text
from dreamllm.evaluate import demo_page, files
from dreamllm.model.build import build_from_foundations
from dreamllm.sources import picture_files, records

SMOKE = (repository.ROOT / "config/smoke.yaml").read_text(encoding="utf-8")
CODE = "from pathlib import Path\n\nPath({trace!r}).touch()\n\n\nclass Custom:\n    pass\n"


# ---- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/name:os.system"])
def test_a_configuration_cannot_name_python_objects(tmp_path, tag):
    path = tmp_path / "hostile.yaml"
    path.write_text(SMOKE.replace("name: smoke", f"name: {tag} [{tmp_path / 'it_ran'}]"))
    with pytest.raises(ConfigProblem, match="hostile.yaml: not valid YAML"):
        load(path)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: smoke", "name: 'a; touch it_ran'"),
        ("model: comprehension_only", "model: 'a $(touch it_ran)'"),
        ("  align_comprehension: &stage", "  'a; touch it_ran': &stage"),
    ],
)
def test_names_that_go_into_commands_hold_no_shell(tmp_path, old, new):
    assert old in SMOKE
    path = tmp_path / "hostile.yaml"
    path.write_text(SMOKE.replace(old, new))
    with pytest.raises(ConfigProblem):
        load(path)


def test_paths_are_quoted_in_commands(tmp_path):
    """A folder with a semicolon is the name of a folder."""
    checkout = repository.copy(tmp_path / "checkout")
    path = tmp_path / "hostile.yaml"
    path.write_text(SMOKE.replace("folder: data/emoji_smoke", "folder: 'data/a; touch it_ran'"))
    target = "results/checkpoints/smoke/align_creation"
    plan = repository.run(checkout, "snakemake", "-n", "-p", f"--configfile={path}", target).stdout
    commands = [line for line in plan.splitlines() if "touch it_ran" in line and "python -m" in line]
    assert commands
    assert all("'data/a; touch it_ran" in line for line in commands)


# ---- checkpoints and hubs ------------------------------------------------------------------------------------------


def plant(folder: Path, trace: Path, **entries) -> None:
    """Code beside a model, and the entries of its config.json that ask for it to be run."""
    (folder / "custom.py").write_text(CODE.format(trace=str(trace)))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | entries))


@pytest.mark.parametrize("part", ["llm", "clip"])
@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_model_is_not_run(tmp_path, part, known):
    folder = tiny.foundations(tmp_path / "foundations")
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoImageProcessor")
    entries = {"auto_map": dict.fromkeys(classes, "custom.Custom")}
    plant(folder / part, tmp_path / "it_ran", **entries, **({} if known else {"model_type": "custom"}))
    parts = [folder / name for name in ("llm", "clip", "sd")]
    if known:
        build_from_foundations(*parts, num_dream_queries=2)  # as the library's own class
    else:
        with pytest.raises(ValueError, match="trust_remote_code|custom"):
            build_from_foundations(*parts, num_dream_queries=2)
    assert not (tmp_path / "it_ran").exists()


def test_code_that_comes_with_stable_diffusion_is_not_run(tmp_path):
    folder = tiny.foundations(tmp_path / "foundations") / "sd"
    (folder / "unet/custom.py").write_text(CODE.format(trace=str(tmp_path / "it_ran")))
    index = {"_class_name": ["custom", "Custom"], "unet": ["custom", "Custom"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "custom.py").write_text(CODE.format(trace=str(tmp_path / "it_ran")))
    with pytest.raises((ValueError, OSError, AttributeError, ImportError)):
        StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert not (tmp_path / "it_ran").exists()


def test_a_pickle_named_safetensors_is_no_safetensors(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "trained.safetensors")
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "trained.safetensors")


def test_nobody_trusts_remote_code_or_unpickles_or_unpacks_without_the_data_filter():
    """The words do not stand in the code: what they would allow is not asked for anywhere."""
    for path in [*(repository.ROOT / "src").rglob("*.py"), *(repository.ROOT / "workflow").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword):
                asked = (node.arg, getattr(node.value, "value", None))
                assert asked not in {("trust_remote_code", True), ("weights_only", False), ("allow_pickle", True)}, path
                assert asked != ("shell", True), path
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                assert name not in {"eval", "exec", "unpack_archive", "system"} or node.args == [], path
                filtered = [(keyword.arg, getattr(keyword.value, "value", None)) for keyword in node.keywords]
                assert name != "extractall" or ("filter", "data") in filtered, path
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load":
                assert getattr(node.func.value, "id", "") not in {"pickle", "marshal", "joblib"}, path


# ---- archives and pictures -----------------------------------------------------------------------------------------


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def test_archives_in_archives_end_somewhere(tmp_path):
    """Some hold themselves, and would be opened for ever."""
    content = zipped("records.json", b"[]")
    for _ in range(records.DEEPEST - 1):
        content = zipped("inner.zip", content)
    (tmp_path / "deep.zip").write_bytes(content)
    assert records.read_json(records.one(tmp_path, ".json")) == []
    (tmp_path / "deep.zip").write_bytes(zipped("inner.zip", content))
    with pytest.raises(records.RecordProblem, match="archives nested more than 3 deep"):
        records.members(tmp_path, ".json")


def test_a_small_pack_of_a_huge_file_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LARGEST_LINE", 1000)
    content = b"[" + b" " * 1_000_000 + b"]"
    (tmp_path / "a.zip").write_bytes(zipped("records.json", content))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(content))
    for member in records.members(tmp_path, ".json"):
        with pytest.raises(records.RecordProblem, match="has more than .* when decompressed"):
            records.read_json(member)
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(b'{"a": "' + b"x" * 5000 + b'"}\n{"a": 1}\n'))
    read = [record for _, record in records.read_jsonl(records.one(tmp_path, ".jsonl"))]
    assert read[-1] == {"a": 1}
    assert all(isinstance(record, records.Rejected) for record in read[:-1]) and len(read) == 7


def test_names_in_archives_lead_nowhere(tmp_path):
    """Members are read by their names in the archive, and nothing is written."""
    inside, outside = tmp_path / "set", tmp_path / "secret.png"
    inside.mkdir()
    outside.write_bytes(images.encode_png(tiny.picture(0)))
    (inside / "images.zip").write_bytes(zipped("../secret.png", images.encode_png(tiny.picture(1))))
    found = picture_files.picture_files((("", inside),))
    assert found.read_by_name("secret.png") == images.encode_png(tiny.picture(1))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["images.zip", "secret.png", "set"]


def test_a_picture_file_of_gigabytes_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_PICTURE", 10_000)
    monkeypatch.setattr(picture_files, "LARGEST_PICTURE", 10_000)
    (tmp_path / "images.zip").write_bytes(zipped("1.png", bytes(1_000_000)))
    with pytest.raises(files.BenchmarkProblem, match="has 1000000 bytes"):
        files.Pictures(tmp_path / "images.zip").read("1.png")
    with pytest.raises(ValueError, match="has 1000000 bytes"):
        picture_files.PictureFiles((("", tmp_path),)).read("1.png")


def test_a_picture_that_says_it_is_huge_is_refused_by_its_header():
    """A file of 100 bytes whose pixels would take 30 GB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="DecompressionBombError"):
        images.decode(bomb)


# ---- secrets and pages ---------------------------------------------------------------------------------------------


def test_the_environment_is_read_by_name_and_never_as_a_whole():
    """So no token can get into a log, a checkpoint or a report with it. The job server alone passes it on as a whole,
    over a socket in a folder of this user."""
    for path in (repository.ROOT / "src").rglob("*.py"):
        if path.name == "job_server.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "environ":
                parent = parents[node]
                by_name = isinstance(parent, ast.Subscript) and isinstance(parent.slice, ast.Constant)
                by_name |= isinstance(parent, ast.Attribute) and parent.attr in ("get", "setdefault", "pop")
                by_name |= isinstance(parent, ast.Compare)
                assert by_name, f"{path}:{node.lineno}"


def test_settings_of_remotes_with_their_keys_stay_out_of_git():
    assert "/config.local" in (repository.ROOT / ".dvc/.gitignore").read_text().split()
    assert "key" not in (repository.ROOT / ".dvc/config").read_text()


def test_a_page_shows_markup_as_text():
    hostile = '<script>alert(1)</script><img src=x onerror=alert(1)> & "quoted"'
    said = Document("prompt", "conversation", (Text(hostile, "user"),))
    told = demo_page.render([SimpleNamespace(prompt=said, parts=(Text(hostile),), stopped="end")], [0], {})
    assert "<script" not in told and "<img" not in told
    assert told.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


def test_data_urls_of_pages_are_base64_of_png_alone():
    picture = tiny.story().parts
    told = demo_page.render([SimpleNamespace(prompt=tiny.story(), parts=picture, stopped="end")], [0], {})
    for url in told.split('src="')[1:]:
        kind, _, data = url.partition('"')[0].partition(";base64,")
        assert kind == "data:image/png" and base64.b64decode(data, validate=True).startswith(b"\x89PNG")


def test_safe_loaders_read_every_yaml_file():
    """`yaml.load` stands once, with the strict loader, which is a SafeLoader."""
    uses = []
    for folder in ("src", "workflow"):
        for path in [*(repository.ROOT / folder).rglob("*.py"), *(repository.ROOT / folder).rglob("*.smk")]:
            text = path.read_text(encoding="utf-8")
            uses += [path.name] * (
                text.count("yaml.load(") + text.count("yaml.unsafe_load(") + text.count("full_load(")
            )
    assert uses == ["reading.py"]
    from dreamllm.config.reading import _StrictLoader

    assert issubclass(_StrictLoader, yaml.SafeLoader)
