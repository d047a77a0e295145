"""Downloads over HTTP that go on after a cut, wait when they are told to, and never pass half a file for a whole one.

requests and urllib3 do the redirects, the waiting (429 and 503 with Retry-After) and the first retries; what is added
here is going on inside a file.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry

from dreamllm.atomic import new_file

BACKOFF = 1.0  # seconds before the first retry; doubles with each further one
ATTEMPTS = 6  # in a row without a new byte
LONGEST_WAIT = 600  # seconds that a server's Retry-After is obeyed at most
TIMEOUT = (30, 120)  # seconds to connect, and between two bytes
PASSING = (429, 500, 502, 503, 504)  # states that may be over soon
CUT = (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.exceptions.Timeout)
HINTS = {401: "it wants an account", 403: "access is not granted", 404: "it is no longer there", 410: "it is gone"}


class FetchProblem(ValueError):
    """Something that cannot be fetched, or is not what was expected: what, where, and what to do."""


def session() -> requests.Session:
    """A session that tries again, also with POST, when a server is busy or the line is cut."""
    retry = Retry(
        total=ATTEMPTS,
        backoff_factor=BACKOFF,
        backoff_max=LONGEST_WAIT,
        status_forcelist=PASSING,
        allowed_methods=None,  # any
        retry_after_max=LONGEST_WAIT,
        raise_on_status=False,  # the last answer comes back and is told
    )
    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=retry))
    return made


def download(url: str, path: Path, web: requests.Session | None = None) -> None:
    """Fetch `url` to `path`, going on from `path`.part where an earlier call stopped.

    A part is continued only when the server says that it is still the same file (If-Range with a strong ETag or with
    Last-Modified), and the length that the server tells is checked. Whether the content is right is for the caller to
    check. Raises FetchProblem.
    """
    web = web or session()
    part, about = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _continue(url, part, about, web):
                break
        except CUT as error:
            failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
            if failures >= ATTEMPTS:
                raise FetchProblem(
                    f"{url}: the line was cut {failures} times without a new byte ({type(error).__name__}); what came "
                    f"so far is kept, the same command goes on there"
                ) from None
            time.sleep(BACKOFF * 2**failures)
    part.replace(path)
    about.unlink(missing_ok=True)


def _continue(url: str, part: Path, about: Path, web: requests.Session) -> bool:
    """One request for what is missing of `part`. Returns whether the file is whole now."""
    start = part.stat().st_size if part.exists() else 0
    mark = json.loads(about.read_text()).get(url) if start and about.exists() else None
    headers = {"Accept-Encoding": "identity"}  # lengths and ranges are of the file itself
    if start and mark:
        headers |= {"Range": f"bytes={start}-", "If-Range": mark}
    with web.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # the part is as long as the file, or longer: begin again
            part.unlink()
            return False
        if answer.status_code not in (200, 206):
            hint = HINTS.get(answer.status_code, "try again later")
            raise FetchProblem(f"{url}: the server answers {answer.status_code} {answer.reason}: {hint}")
        if answer.headers.get("Content-Type", "").startswith("text/html") and part.suffixes[-2:-1] != [".html"]:
            raise FetchProblem(f"{url}: a web page came instead of a file; open the address in a browser to see why")
        start, total = _extent(url, answer, start)
        mark = answer.headers.get("ETag", "W/")
        mark = answer.headers.get("Last-Modified") if mark.startswith("W/") else mark  # a weak ETag is no proof
        with new_file(about) as temporary:
            temporary.write_text(json.dumps({url: mark}))
        with (
            part.open("r+b" if start else "wb") as file,
            tqdm(
                desc=part.stem,
                initial=start,
                total=total,
                unit="B",
                unit_scale=True,
                mininterval=1 if sys.stderr.isatty() else 30,
            ) as progress,
        ):
            file.seek(start)
            file.truncate()
            for block in answer.iter_content(1 << 16):
                file.write(block)
                progress.update(len(block))
            return total is None or file.tell() == total


def _extent(url: str, answer: requests.Response, wanted: int) -> tuple[int, int | None]:
    """Where the body of an answer begins in the file, and the file's length where it is told."""
    if answer.status_code == 206:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not told or int(told[1]) != wanted:
            raise FetchProblem(f"{url}: asked for bytes from {wanted} on, got {answer.headers.get('Content-Range')!r}")
        return wanted, None if told[2] == "*" else int(told[2])
    length = answer.headers.get("Content-Length")
    return 0, int(length) if length else None
