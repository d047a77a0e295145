"""Downloads over HTTP that resume after an interruption, wait for busy servers, and deliver complete files only.

requests and urllib3 follow redirects, wait (429 and 503 with Retry-After) and retry; this module adds resuming within a
file.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry

from dreamllm.atomic import new_file
from dreamllm.masking import mask

BACKOFF = 1.0  # seconds before the first retry; doubled before each further one
ATTEMPTS = 6  # without a new byte, in a row
LONGEST_WAIT = 600  # seconds; the limit for a server's Retry-After
TIMEOUT = (30, 120)  # seconds to connect, and between two bytes
PASSING = (429, 500, 502, 503, 504)  # status codes that may be temporary
CUT = (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.exceptions.Timeout)
HINTS = {
    401: "an account is needed",
    403: "access is denied",
    404: "it does not exist or is no longer there",
    410: "it was removed",
}


LARGEST_ANSWER = 16_000_000  # bytes of what a service answers, unpacked


class FetchProblem(ValueError):
    """Something that cannot be fetched, or is not what was expected. The message says what, where, and what to do.

    Secrets in the message, such as a signed address, are masked.
    """

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


class _Session(requests.Session):
    """A session that sends the body of a request to no other host than the one that it was meant for."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """As in requests, which would send the body again on 307 and 308. Raises FetchProblem for another host."""
        target = super().get_redirect_target(resp)
        if target and resp.status_code in (307, 308) and resp.request.body is not None:
            there = urljoin(resp.url, target)
            if self.should_strip_auth(resp.url, there):  # another host or port, or no longer https
                raise FetchProblem(
                    f"{resp.url}: redirects to another host, {there}; what was asked is not sent there. Name that "
                    "address in the configuration, if it is right"
                )
        return target


def session() -> requests.Session:
    """A session that retries all requests, also POST, when a server is busy or the connection breaks.

    A redirect to another host is followed without the request's body and key, or not at all.
    """
    retry = Retry(
        total=ATTEMPTS,
        backoff_factor=BACKOFF,
        backoff_max=LONGEST_WAIT,
        status_forcelist=PASSING,
        allowed_methods=None,  # any
        retry_after_max=LONGEST_WAIT,
        raise_on_status=False,  # the last response is returned, and reported by the caller
    )
    web = _Session()
    for scheme in ("http://", "https://"):
        web.mount(scheme, HTTPAdapter(max_retries=retry))
    return web


def body_of(answer: requests.Response, most: int = LARGEST_ANSWER) -> str:
    """The text of a response that was asked for with stream=True. Raises FetchProblem beyond `most` bytes, unpacked."""
    read = bytearray()
    for block in answer.iter_content(1 << 16):
        read += block
        if len(read) > most:
            raise FetchProblem(f"{answer.url}: the answer has more than {most:,} bytes; is it the right address?")
    return read.decode("utf-8", "replace")


def download(url: str, path: Path, web: requests.Session | None = None) -> None:
    """Download `url` to `path`, resuming at the end of `path`.part if an earlier call was interrupted.

    A part is continued only if the server confirms that the file is the same (If-Range with a strong ETag or with
    Last-Modified). The length is checked against the server's; the caller has to check the content. Raises
    FetchProblem, before anything is written where the file does not fit on the disk.
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
                    f"{url}: the connection broke {failures} times without a new byte ({type(error).__name__}); the "
                    f"part that came is kept, run the same command again to resume"
                ) from None
            time.sleep(BACKOFF * 2**failures)
        except requests.exceptions.RequestException as error:  # too many redirects, an address that is none
            raise FetchProblem(f"{url}: {error}") from None
    part.replace(path)
    about.unlink(missing_ok=True)


def _continue(url: str, part: Path, about: Path, web: requests.Session) -> bool:
    """Request the rest of `part`. Returns whether the file is complete now."""
    start = part.stat().st_size if part.exists() else 0
    mark = _mark(about, url) if start else None
    headers = {"Accept-Encoding": "identity"}  # so that lengths and ranges are those of the file
    if start and mark:
        headers |= {"Range": f"bytes={start}-", "If-Range": mark}
    with web.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # the part is as long as the file, or longer: start again
            part.unlink()
            return False
        if answer.status_code not in (200, 206):
            hint = HINTS.get(answer.status_code, "try again later")
            raise FetchProblem(f"{url}: the server answers {answer.status_code} {answer.reason}: {hint}")
        if answer.headers.get("Content-Type", "").startswith("text/html") and part.suffixes[-2:-1] != [".html"]:
            raise FetchProblem(f"{url}: the server sent a web page instead of a file; open the address in a browser")
        start, total = _extent(url, answer, start)
        mark = answer.headers.get("ETag", "W/")
        mark = (
            answer.headers.get("Last-Modified") if mark.startswith("W/") else mark
        )  # a weak ETag does not prove equality
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise FetchProblem(f"{url}: has {total:,} bytes, {part.parent} has room for {free:,}")
        with new_file(about) as temporary:
            temporary.write_text(json.dumps({url: mark}), encoding="utf-8")
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


def _mark(about: Path, url: str) -> str | None:
    """What a part that was begun is known by to the server; None where that is not known, or not readable."""
    try:
        mark = json.loads(about.read_text(encoding="utf-8")).get(url)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return mark if isinstance(mark, str) else None


def _extent(url: str, answer: requests.Response, start: int) -> tuple[int, int | None]:
    """The offset of a response's body in the file, and the length of the file if the server states it."""
    if answer.status_code == 206:
        given = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", answer.headers.get("Content-Range", "")
        )
        if not given or int(given[1]) != start:
            raise FetchProblem(f"{url}: requested bytes from {start}, got {answer.headers.get('Content-Range')!r}")
        return start, None if given[2] == "*" else int(given[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
