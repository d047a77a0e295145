"""A hostile configuration is a line of error, in bounded memory, and never makes a rule delete what is not its own."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import repository
from dreamllm.config.reading import ConfigProblem, check_folders, load, own_folders, read_yaml
from dreamllm.sources import manifest

SMOKE = (repository.ROOT / "config/smoke.yaml").read_text(encoding="utf-8")
REAL = (repository.ROOT / "config/single_gpu.yaml").read_text(encoding="utf-8")
FORBIDDEN = [
    "../victim", "data/../../victim", "data/..", "data", "data/", ".", "", "src/dreamllm", "results", "/tmp/victim",
    "~/x", "config", "data/store", "data/store/files", "data/by_hand/coco", "data/human", "data/inception",
    "data/{run}", "data/a\\nb", "data/" + "n" * 300, "data\\\\x",
]  # fmt: skip


def refused(tmp_path: Path, text: str) -> str:
    """The message of the error, which is short and has no traceback of a library."""
    path = tmp_path / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigProblem) as told:
        load(path)
    assert len(str(told.value)) < 5000
    return str(told.value)


# ---- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FORBIDDEN)
@pytest.mark.parametrize("key", ["world", "foundations"])
def test_a_folder_that_rules_write_lies_below_data(tmp_path, key, folder):
    old = {"world": "folder: data/emoji_smoke", "foundations": "folder: data/foundations_smoke"}[key]
    assert old in SMOKE
    assert f"{key}" in refused(tmp_path, SMOKE.replace(old, f'folder: "{folder}"'))


@pytest.mark.parametrize("folder", ["../victim", "src", "/tmp/victim", "data/store"])
@pytest.mark.parametrize("old", ["folder: data/foundations_single_gpu", "{folder: data/sources/single_gpu/blip_laion,"])
def test_so_do_those_of_public_sets_and_of_hub_models(tmp_path, folder, old):
    assert old in REAL
    new = old.replace(old.partition("folder: ")[2].rstrip(","), folder)
    assert "folder" in refused(tmp_path, REAL.replace(old, new))


@pytest.mark.parametrize("key", ["world.folder", "foundations.folder", "evaluation.pictures.clip"])
def test_a_path_that_rules_read_or_write_has_no_brace(tmp_path, key):
    """Snakemake takes braces for wildcards; other signs are allowed."""
    *sections, last = key.split(".")

    def smoke_with(path: str) -> str:
        content = yaml.safe_load(SMOKE)
        section = content
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = path
        return yaml.safe_dump(content)

    assert "has a brace" in refused(tmp_path, smoke_with("data/a{run}b"))
    (tmp_path / "odd.yaml").write_text(smoke_with("data/ä 'b' %s $x"), encoding="utf-8")
    assert load(tmp_path / "odd.yaml")


@pytest.mark.parametrize("store", ["../store", "/srv/store", "src"])
def test_a_store_is_below_data(tmp_path, store):
    assert "foundations.instruments.store" in refused(tmp_path, REAL.replace("store: data/store", f"store: {store}"))


@pytest.mark.parametrize("name", ["../../victim", "a/b", "..", "/etc", "x" * 300, "a b"])
def test_names_of_released_models_are_no_paths(tmp_path, name):
    """They are folders below data/released."""
    old = "clip: clip-vit-base-patch16"
    assert old in REAL
    assert "foundations.clip" in refused(tmp_path, REAL.replace(old, f"clip: '{name}'"))


def test_folders_are_compared_in_their_shortest_form(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(SMOKE.replace("folder: data/emoji_smoke", "folder: ./data//./emoji_smoke/"))
    assert load(path).world.folder == "data/emoji_smoke"


def test_every_folder_of_a_configuration_is_known_to_the_check():
    """A new key called `folder` has to be looked at too."""
    experiment = load(repository.ROOT / "config/single_gpu.yaml")

    def folders(section: object, where: str) -> dict[str, str]:
        found = {}
        for key, value in section.items() if isinstance(section, dict) else ():
            if key == "folder" and value:
                found[f"{where}.folder".lstrip(".")] = value
            found |= folders(value, f"{where}.{key}".lstrip("."))
        return found

    assert own_folders(experiment) == folders(experiment.model_dump(mode="json"), "")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "data").mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    return root


def experiment():
    return load(repository.ROOT / "config/smoke.yaml")


@pytest.mark.parametrize("link", ["data/emoji_smoke", "data/emoji_smoke/train", "data/foundations_smoke"])
def test_a_link_out_of_data_is_not_written_through(checkout, link):
    check_folders(experiment(), checkout)
    (checkout / link).parent.mkdir(exist_ok=True)
    (checkout / link).symlink_to(checkout.parent / "victim")
    with pytest.raises(ConfigProblem, match=f"{link} is or crosses a link to .*victim"):
        check_folders(experiment(), checkout)


def test_links_inside_data_and_files_of_dvcs_cache_are_no_problem(checkout):
    (checkout / "data/elsewhere").mkdir()
    (checkout / "data/emoji_smoke").symlink_to("elsewhere")
    (checkout / "data/foundations_smoke").mkdir()
    (checkout / "data/foundations_smoke/file").symlink_to(checkout.parent / "victim/file")
    check_folders(experiment(), checkout)


def test_a_folder_with_files_in_git_is_not_written(checkout):
    (checkout / "data/emoji_smoke/train").mkdir(parents=True)
    (checkout / "data/emoji_smoke/train/mine").write_text("mine")
    repository.run(checkout, "git", "init", "--quiet")
    check_folders(experiment(), checkout)
    repository.commit(checkout)
    with pytest.raises(ConfigProblem, match=r"world.folder: .* has files in git, such as data/emoji_smoke/train/mine"):
        check_folders(experiment(), checkout)


def test_snakemake_refuses_before_it_deletes(tmp_path):
    checkout = repository.copy(tmp_path / "checkout")
    (tmp_path / "victim/train").mkdir(parents=True)
    (tmp_path / "victim/train/mine").write_text("mine")
    (checkout / "data/emoji_smoke").symlink_to(tmp_path / "victim")
    done = repository.run(checkout, "snakemake", "--cores", "1", "--configfile=config/smoke.yaml", "data", check=False)
    assert done.returncode and "is or crosses a link to" in done.stdout
    assert (tmp_path / "victim/train/mine").read_text() == "mine"


# ---- what exhausts memory, and odd values --------------------------------------------------------------------------


def bombs() -> dict[str, str]:
    laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'lol'] * 10)}]" for n in range(30))
    merged = "\n".join(f"m{n}: &m{n} {{{', '.join(f'k{n}_{i}: *m{n - 1}' for i in range(10))}}}" for n in range(1, 30))
    return {
        "aliases of aliases": laughs,
        "mappings of aliases": f"m0: &m0 {{x: 1}}\n{merged}",
        "an alias of itself": "name: &a [*a]",
        "a mapping of itself": "world: &a {b: *a}",
        "a seed of 5000 digits": SMOKE.replace("name: smoke", f"name: smoke\nseed: {'9' * 5000}"),
        "a seed of 4000 digits": SMOKE.replace("name: smoke", f"name: smoke\nseed: {'9' * 4000}"),
        "a seed of 100,000 hexadecimal digits": SMOKE.replace("name: smoke", f"name: smoke\nseed: 0x{'f' * 100_000}"),
        "a negative seed": SMOKE.replace("name: smoke", "name: smoke\nseed: -1"),
        "steps of 4000 digits": re.sub(r"\bsteps: \d+", f"steps: {'9' * 4000}", SMOKE),
        "lists 5000 deep": f"name: {'[' * 5000}{']' * 5000}",
        "mappings 5000 deep": f"name: {'{a: ' * 5000}1{'}' * 5000}",
        "blocks 500 deep": "".join(f"{' ' * n}a:\n" for n in range(500)),
        "a name of 300 letters": SMOKE.replace("name: smoke", f"name: {'n' * 300}"),
        "a stage of 300 letters": SMOKE.replace("align_comprehension", "s" * 300),
        "a key of a million letters": f"{'k' * 1_000_000}: 1",
        "a value of a million letters": SMOKE.replace("name: smoke", f"name: smoke\nseed: {'v' * 1_000_000}"),
        "20,000 unknown keys": SMOKE + "".join(f"\nunknown{n}: 1" for n in range(20_000)),
        "the same seed twice": SMOKE.replace("name: smoke", "name: smoke\nseeds: [1, 1]"),
        "an integer that is none": "name: !!int ''",
        "a truth that is none": "name: !!bool x",
        "a time that is none": "name: !!timestamp x",
        "a date that is none": "name: 2001-99-99",
        "a binary that is none": "name: !!binary 'x'",
        "a list as a key": "? [a]\n: 1",
        "bytes": "name: \0",
        "two documents": "a: 1\n---\nb: 1",
    }


@pytest.mark.parametrize("bomb", bombs())
def test_a_configuration_that_explodes_is_an_error_in_little_memory(tmp_path, bomb):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = refused(tmp_path, bombs()[bomb])
    assert said.startswith(str(tmp_path / "hostile.yaml"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: smoke", "name: smoke\nseeds: [3, 1, 3]", "seeds: 3 is listed twice"),
        ("trains: [visual_projector]", "trains: [visual_projector, visual_projector]", "visual_projector is listed"),
        ("\nbenchmarks:", "\nbenchmarks:\n  f: {task: vqa, shots: [1, 1]}", "shots: 1 is listed twice"),
        ("\nbenchmarks:", "\nbenchmarks:\n  f: {task: harness, harness_task: ../x.yaml}", "harness_task"),
        ("name: smoke", "name: smoke\ninstruction_writer: {model: m, endpoint: 'http://me:word@host/v1'}", "holds a"),
    ],
)
def test_odd_values_are_named_with_their_key(tmp_path, old, new, words):
    assert old in SMOKE
    said = refused(tmp_path, SMOKE.replace(old, new, 1))
    assert words in said and "word@" not in said


def test_a_configuration_of_gigabytes_or_that_is_no_file_is_not_read(tmp_path):
    (tmp_path / "huge.yaml").touch()
    os.truncate(tmp_path / "huge.yaml", 10_000_000_000)
    with pytest.raises(ConfigProblem, match="has 10000000000 bytes"):
        load(tmp_path / "huge.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigProblem, match="cannot be read"):
        load(tmp_path / "folder.yaml")


def test_the_command_says_it_in_a_line_and_never_with_a_traceback(tmp_path):
    (tmp_path / "hostile.yaml").write_text(bombs()["aliases of aliases"])
    command = [sys.executable, "-m", "dreamllm", "plan", "--config", str(tmp_path / "hostile.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository.ROOT)
    assert done.returncode == 1 and "values, aliases resolved" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_aliases_that_share_are_still_read(tmp_path):
    path = tmp_path / "shared.yaml"
    path.write_text("base: &base {a: [1, 2]}\nother: {<<: *base, b: 2}\nlist: [*base, *base]")
    assert read_yaml(path)["other"] == {"a": [1, 2], "b": 2}
    for own in sorted((repository.ROOT / "config").glob("*.yaml")):
        assert read_yaml(own) == yaml.safe_load(own.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "https://me:pa55@host/x", "https://h/x?token=abc"]
)
def test_the_manifest_of_sets_names_http_addresses_without_keys(tmp_path, url):
    facts = "title: x, availability: open, source: t, unknown: all, format: gqa"
    (tmp_path / "sources.yaml").write_text(f"mine: {{{facts}, files: [{{url: '{url}'}}]}}")
    with pytest.raises(ConfigProblem, match=r"files") as told:
        manifest.load(tmp_path / "sources.yaml")
    assert "pa55" not in str(told.value) and "abc" not in str(told.value)
