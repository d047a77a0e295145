"""No key or password gets into a message, a file or another host; pictures are asked for on the public web only."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests

import loopback
import repository
from dreamllm.config.reading import ConfigProblem
from dreamllm.config.sources import InstructionWriter, SourceSettings
from dreamllm.masking import VARIABLES, mask
from dreamllm.repro.audit import audited_run
from dreamllm.sources import manifest, urls
from dreamllm.sources.addresses import refusal
from dreamllm.sources.services import http as ours
from dreamllm.sources.services.chat import Chat
from dreamllm.sources.services.http import FetchProblem, download, session

KEY = "key-with-/and+and=:1234567890"


# ---- masking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:word@host/x", "https://***@host/x"),
        ("s3://AKIAABCDEFGHIJKLMNOP:word@host/x", "s3://***@host/x"),
        ("ssh://token@host:22/x and http://a:b@c", "ssh://***@host:22/x and http://***@c"),
        ("https://h/x?a=1&token=abc&b=2", "https://h/x?a=1&token=***&b=2"),
        ("https://h/x?X-Amz-Signature=0f&X-Amz-Credential=AK", "https://h/x?X-Amz-Signature=***&X-Amz-Credential=***"),
        ("https://h/x?sv=1&sig=a%2Fb", "https://h/x?sv=1&sig=***"),
        ("https://h/x?api_key=abc", "https://h/x?api_key=***"),
        ("{'Authorization': 'Bearer abcdefgh'}", "{'Authorization': 'Bearer ***'}"),
        ("Authorization: Basic bWU6d29yZA==", "Authorization: Basic ***"),
        ("bad key sk-abcdefghijklmnop1234.", "bad key ***."),
        ("hf_abcdefghijklmnopqrstuv", "***"),
        ("ghp_abcdefghijklmnopqrstuvwxyz", "***"),
        ("https://host/x?page=2#part", "https://host/x?page=2#part"),
        ("git@host:owner/name, me@example.org, a bear er", "git@host:owner/name, me@example.org, a bear er"),
    ],
)
def test_secrets_are_masked_and_other_text_is_not(text, shown):
    assert mask(text) == shown


@pytest.mark.parametrize("name", VARIABLES)
def test_values_of_the_environment_are_masked_in_every_form(name, monkeypatch):
    monkeypatch.setenv(name, KEY)
    for form in (KEY, requests.utils.quote(KEY, safe=""), json.dumps({"key": KEY})):
        assert "1234567890" not in mask(f"before {form} after")
    monkeypatch.setenv(name, "")
    assert mask("nothing to mask") == "nothing to mask"


def test_masking_takes_little_time():
    """Its patterns have no repetition inside of a repetition."""
    for text in ("a" * 200_000, "a." * 100_000, "a://" * 50_000, "?token" * 30_000, "bearer " * 30_000, "sk-" * 60_000):
        assert mask(text) is not None


@pytest.fixture
def service():
    with loopback.serve() as server:
        yield server


def ask(server: loopback.Loopback, cache: Path, path: str = "/v1") -> str:
    settings = InstructionWriter(endpoint=f"{server.url}{path}", model="writer")
    return Chat(settings, cache, KEY).ask([{"role": "user", "content": "the prompt"}])


@pytest.mark.parametrize("code", [200, 400, 401, 500])
@pytest.mark.parametrize("place", range(300 - len(KEY) - 8, 302, 3))
def test_a_key_at_the_cut_of_a_message_is_masked(tmp_path, service, monkeypatch, code, place):
    monkeypatch.setattr(ours, "PASSING", ())
    answer = ("x" * place + KEY + "y" * 300).encode()
    service.answers["/v1/chat/completions"] = lambda body, headers: (code, {}, answer)
    with pytest.raises(FetchProblem) as told:
        ask(service, tmp_path)
    assert not any(KEY[:length] in str(told.value) for length in range(6, len(KEY) + 1))


def test_an_answer_that_repeats_the_key_is_kept_without_it(tmp_path, service):
    said = {"choices": [{"message": {"content": f"your key is {KEY}"}}], "model": f"m {KEY}"}
    service.answers["/v1/chat/completions"] = lambda body, headers: (200, {}, json.dumps(said).encode())
    assert ask(service, tmp_path) == "your key is ***"
    kept = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(kept) == 1 and KEY not in kept[0]


@pytest.mark.parametrize(
    "said",
    [
        {"choices": [{"message": {"content": ["a", "list"]}}]},
        {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "many"}},
        {"choices": [{"message": {"content": "a"}}], "model": 7},
        {"choices": {}}, [], 7,
    ],
    ids=str,
)  # fmt: skip
def test_an_odd_answer_is_one_line(tmp_path, service, said):
    service.answers["/v1/chat/completions"] = lambda body, headers: (200, {}, json.dumps(said).encode())
    with pytest.raises(FetchProblem, match="is not a chat completion"):
        ask(service, tmp_path)


def test_a_signed_address_is_masked_in_errors_of_downloads(tmp_path, service):
    with pytest.raises(FetchProblem, match=r"token=\*\*\*") as told:
        download(f"{service.url}/x?token=abcdef", tmp_path / "x")
    assert "abcdef" not in str(told.value)
    with pytest.raises(FetchProblem):
        download("http://[malformed/x?token=abcdef", tmp_path / "x")


@pytest.mark.parametrize("kind", [ValueError, ConfigProblem, FetchProblem, PermissionError, requests.HTTPError])
def test_no_error_that_a_command_prints_has_a_secret(tmp_path, kind):
    """Messages of our own, tracebacks of libraries, and the errors that they were raised from."""
    program = f"""
import errno, sys
from dreamllm import cli
from dreamllm.config.reading import ConfigProblem
from dreamllm.sources.services.http import FetchProblem
from requests import HTTPError
from dreamllm.verbs import figures
def main(arguments):
    try:
        raise RuntimeError("first: https://me:word0@host, $KEY")
    except RuntimeError as first:
        error = {kind.__name__}("https://me:word1@host?token=word2 $KEY Authorization: Bearer word3word3")
        if isinstance(error, PermissionError): error = PermissionError(errno.EACCES, *error.args)
        raise error from first
figures.main, figures.add_arguments = main, lambda parser: None
cli.main(["figures"])
""".replace("$KEY", KEY)
    environment = {"OPENAI_API_KEY": KEY, "PYTHONPATH": str(repository.ROOT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "***" in done.stderr
    # the traceback quotes no line of a program given by -c
    assert not [word for word in ("word0", "word1", "word2", "word3", KEY) if word in done.stdout + done.stderr]


def test_what_snakemake_says_is_masked_by_the_audit(tmp_path, monkeypatch):
    said = subprocess.CompletedProcess([], 1, "", f"Error in {'x' * 20}\nhttps://me:word@host {KEY}\n")
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setattr(audited_run.subprocess, "run", lambda *_, **__: said)
    run = audited_run.AuditedRun.__new__(audited_run.AuditedRun)
    run.run = type("Run", (), {"config": "c", "root": tmp_path})
    with pytest.raises(ValueError, match=r"\*\*\*") as told:
        run._list_by_snakemake()
    assert "word" not in str(told.value) and KEY not in str(told.value)


def test_a_dvc_remote_with_a_password_in_its_address_is_refused(tmp_path):
    repository.run(tmp_path, "git", "init", "--quiet")
    repository.run(tmp_path, "dvc", "init", "--quiet")
    repository.run(tmp_path, "dvc", "remote", "add", "--default", "mine", "https://me:word@host/store")
    program = f"import sys; sys.path.insert(0, {str(repository.ROOT / 'workflow')!r}); import restore; "
    done = subprocess.run(
        [sys.executable, "-c", program + "restore.default_remote()"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and "https://***@host/store" in done.stderr and "word@" not in done.stderr
    repository.run(tmp_path, "dvc", "remote", "modify", "mine", "url", "https://host/store")
    done = subprocess.run([sys.executable, "-c", program + "print(restore.default_remote())"], capture_output=True,
                          text=True, check=False, cwd=tmp_path)  # fmt: skip
    assert done.stdout.strip() == "mine"


# ---- redirects -----------------------------------------------------------------------------------------------------


@pytest.fixture
def other():
    """Another host: another port counts as one, since any user of a machine can listen there."""
    with loopback.serve() as server:
        yield server


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_prompt_and_a_key_are_sent_to_no_other_host(tmp_path, service, other, code):
    bodies = []

    def answer(body, headers):
        bodies.append((body, dict(headers)))
        return 200, {}, json.dumps({"choices": [{"message": {"content": "stolen"}}]}).encode()

    other.answers["/v1/chat/completions"] = answer
    target = {"Location": f"{other.url}/v1/chat/completions"}
    service.answers["/v1/chat/completions"] = lambda body, headers: (code, target, b"")
    with pytest.raises(FetchProblem):
        ask(service, tmp_path)
    assert not bodies
    assert not [headers for _, _, headers in other.seen if "Authorization" in headers]


@pytest.mark.parametrize("code", [307, 308])
def test_a_redirect_on_the_same_host_is_followed_with_the_prompt(tmp_path, service, code):
    said = json.dumps({"choices": [{"message": {"content": "here"}}]}).encode()
    service.answers["/new/chat/completions"] = lambda body, headers: (200, {}, said)
    service.answers["/v1/chat/completions"] = lambda body, headers: (code, {"Location": "/new/chat/completions"}, b"")
    assert ask(service, tmp_path) == "here"


def test_downloads_follow_redirects_to_other_hosts(tmp_path, service, other):
    """As every content network needs them; they have no body."""
    other.files["/file"] = b"content"
    service.faults["/file"] = [("redirect", f"{other.url}/file")]
    download(f"{service.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_https_is_not_left_with_a_body():
    web = session()
    asked = requests.Request("POST", "https://host/x", json={"a": 1}).prepare()
    answer = requests.Response()
    answer.status_code, answer.request, answer.url = 307, asked, asked.url
    answer.headers["Location"] = "http://host/x"
    with pytest.raises(FetchProblem, match="redirects to another host"):
        web.get_redirect_target(answer)


# ---- addresses of pictures -----------------------------------------------------------------------------------------

LOCAL = [
    "http://127.0.0.1/x", "http://127.1/x", "http://2130706433/x", "http://0x7f000001/x", "http://0x7f.0.0.1/x",
    "http://0177.0.0.1/x", "http://0/x", "http://0.0.0.0/x", "http://[::1]/x", "http://[::]/x",
    "http://[::ffff:127.0.0.1]/x", "http://[::ffff:a9fe:a9fe]/x", "http://[::127.0.0.1]/x", "http://[fe80::1]/x",
    "http://[fd00::1]/x", "http://[64:ff9b::7f00:1]/x", "http://[2002:7f00:1::]/x",
    "http://169.254.169.254/latest/meta-data", "http://169.254.169.254.:80/x", "http://10.0.0.1/x",
    "http://172.16.0.1/x", "http://192.168.1.1:8080/x", "http://100.64.0.1/x", "http://224.0.0.1/x",
    "http://255.255.255.255/x", "http://localhost/x", "http://LOCALHOST./x", "http://a.localhost/x",
    "http://printer.local/x", "http://metadata.google.internal/x", "http://metadata/x", "http://me@127.0.0.1/x",
    "http://example.com@127.0.0.1/x", "http://127%2e0.0.1/x", "http://１２７.0.0.1/x", "http://127。0。0。1/x",
    "HTTP://127.0.0.1/x", "http://999999999999/x",
]  # fmt: skip
MALFORMED = ["http://", "http:///x", "http://[::1/x", "http://host:port/x", "http://host\\@127.0.0.1/x", "http://h\nost/x",
             "http://[fe80::1%25eth0]/x",
             "http://ho st/x", "http://host:0/x", "http://host:99999/x", "http://\x00/"]  # fmt: skip
OTHERS = ["file:///etc/passwd", "ftp://host/x", "gopher://host/x", "data:image/png;base64,AA", "javascript:1", "x",
          "//host/x",
          "/etc/passwd", "", "s3://bucket/x", "FILE:///x", " file:///x"]  # fmt: skip
PUBLIC = ["http://example.com/x", "https://example.com:8443/a?b=c#d", "http://8.8.8.8/x", "http://[2606:4700::1111]/x",
          "http://web/x", "http://localhost.example.com/x", "http://bücher.example/x", "http://10.example.com/x",
          "http://example.com/a b", "https://u:p@example.com/x"]  # fmt: skip


@pytest.mark.parametrize("url", LOCAL)
def test_hosts_of_the_local_network_are_left_out(url):
    assert refusal(url) == "address of a private host"
    assert refusal(url, private_hosts=True) == ""


@pytest.mark.parametrize("url", MALFORMED)
def test_addresses_that_programs_read_differently_are_left_out(url):
    assert refusal(url) == refusal(url, private_hosts=True) == "address is malformed"


@pytest.mark.parametrize("url", OTHERS)
def test_other_schemes_are_left_out(url):
    assert refusal(url) == refusal(url, private_hosts=True) == "address is not http(s)"


@pytest.mark.parametrize("url", PUBLIC)
def test_the_public_web_is_asked(url):
    assert refusal(url) == ""


def test_a_list_of_private_hosts_alone_says_what_allows_them(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/list.json").write_text(json.dumps([{"url": "http://10.0.0.1/1", "caption": "a cat"}]))
    facts = {"title": "x", "availability": "open", "source": "t", "unknown": "all", "obtain": "y", "format": "url_json"}
    with pytest.raises(
        ValueError, match="address of a private host, first in .*list.json; `private_hosts: true` of the set allows"
    ):
        urls.list_urls(manifest.Source.model_validate(facts), SourceSettings(), tmp_path / "raw", tmp_path / "urls")


@pytest.mark.parametrize(("flag", "kept"), [(False, ["http://web/0"]), (True, ["http://web/0", "http://10.0.0.1/1"])])
@pytest.mark.parametrize("form", ["url_json", "mmc4"])
def test_a_list_for_img2dataset_has_no_such_address_and_says_how_many(tmp_path, form, flag, kept):
    asked = ["http://web/0", "http://10.0.0.1/1", "file:///etc/passwd", "http://web:0/x"]
    (tmp_path / "raw").mkdir()
    if form == "url_json":
        rows = [{"url": url, "caption": "a cat"} for url in asked]
        (tmp_path / "raw/list.json").write_text(json.dumps(rows))
    else:
        infos = [{"raw_url": url, "matched_text_index": 0, "matched_sim": 0.3} for url in asked]
        (tmp_path / "raw/docs.jsonl").write_text(json.dumps({"text_list": ["One."], "image_info": infos}))
    facts = {"title": "x", "availability": "open", "source": "t", "unknown": "all", "obtain": "y", "format": form}
    source = manifest.Source.model_validate(facts)
    counts = urls.list_urls(source, SourceSettings(private_hosts=flag), tmp_path / "raw", tmp_path / "urls")
    with gzip.open(tmp_path / "urls" / urls.LIST, "rt") as file:
        assert [json.loads(line)["url"] for line in file] == kept
    assert counts["left out: address is not http(s)"] == counts["left out: address is malformed"] == 1
    assert counts.get("left out: address of a private host", 0) == (0 if flag else 1)
