"""What a hub has of a model, and what it says no to: the only place that knows huggingface_hub.

The client library brings addresses, tokens (HF_TOKEN or a login), mirrors (HF_ENDPOINT) and the hub's own errors. It
takes up a download where it broke off within one process only, so bytes are read here and kept by `fetch`. Transfers
go over HTTP, which every mirror speaks.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from llmhost.config.sources import HubSource
from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.gguf_repositories import choose_gguf, gguf_names, quantisations

if TYPE_CHECKING:
    import httpx2

ASK_TIMEOUT_S = 20.0
"""How long the hub may take to begin an answer, and to send the next piece of one."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that another try may get past."""

USEFUL = (
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
    "additional_chat_templates/*.jinja",
    # Modules of models that pool, as sentence-transformers writes them.
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
)
"""What is fetched beside the weights: no pickles, no programs, no copies for other engines."""

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")
"""Weights by their usual names; the first that matches anything is taken, so that no second copy of them is."""


class Interrupted(Exception):
    """The transfer broke in a way that passes: asking again goes on from there."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file, and what the hub says of its contents."""

    path: str
    size_bytes: int
    digest: str
    """64 hex digits are the contents' SHA-256; 40 are git's hash of them."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit, as far as an engine needs them."""

    source: HubSource
    commit: str
    files: tuple[HubFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def list_files(source: HubSource) -> Listing:
    """Ask the hub. Raises ModelUnavailable in plain words."""
    from huggingface_hub import HfApi

    with _plain_words(source):
        info = HfApi(endpoint=endpoint()).model_info(
            source.repository,
            revision=source.revision,
            files_metadata=True,
            timeout=ASK_TIMEOUT_S,
        )
        commit = info.sha or source.revision
        siblings = {one.rfilename: one for one in info.siblings or ()}
        files = []
        for path in choose_files(siblings, source):
            one = siblings[path]
            digest = one.lfs.sha256 if one.lfs is not None else one.blob_id
            if digest is None or one.size is None:  # a mirror that lists names only
                files.append(_ask_for(source, commit, path))
            else:
                files.append(HubFile(path, one.size, digest))
    return Listing(source, commit, tuple(files))


def choose_files(paths: Iterable[str], source: HubSource) -> list[str]:
    """Those that an engine needs. Raises ModelUnavailable for a repository without weights in a format that we read."""
    names = sorted(path for path in paths if _is_safe(path))
    if source.is_gguf and (source.pick or gguf_names(names)):
        return choose_gguf(names, source)
    weights = _weights(names)
    if not weights:
        raise ModelUnavailable(
            f"{_the(source)} has no weights to serve: {_what_instead(names, source)}"
        )
    beside = {
        path
        for path in names
        if any(fnmatch(path, want) and path.count("/") == want.count("/") for want in USEFUL)
    }
    return sorted(beside | set(weights))


@contextmanager
def open_file(
    listing: Listing, file: HubFile, start: int
) -> "Iterator[tuple[int, Iterator[bytes]]]":
    """The bytes of a file from `start` on, as they come, with the place where they really begin.

    Raises Interrupted or, where asking again is no use, ModelUnavailable.
    """
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported at run time

    url = hf_hub_url(listing.source.repository, file.path, revision=listing.commit)
    headers = {**build_hf_headers(library_name="llmhost"), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with (
        _plain_words(listing.source, passing=True),
        get_session().stream("GET", url, headers=headers, timeout=ASK_TIMEOUT_S) as answer,
    ):
        if answer.status_code == 416:  # what is here is longer than what is there
            raise Interrupted("the hub has fewer bytes")
        hf_raise_for_status(answer)
        yield _began(answer, start), answer.iter_bytes()


def endpoint() -> str:
    """The hub's address: Hugging Face's, or the mirror that HF_ENDPOINT names."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _ask_for(source: HubSource, commit: str, path: str) -> HubFile:
    """Size and hash from the headers of the file itself."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(source.repository, path, revision=commit)
    facts = get_hf_file_metadata(url, timeout=ASK_TIMEOUT_S)
    if facts.size is None or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", facts.etag or ""):
        raise ModelUnavailable(
            f"{endpoint()} does not say what {path} of {source} must hold (its etag is {facts.etag!r}), so what"
            " arrives could not be checked. HF_ENDPOINT may name another hub or mirror."
        )
    return HubFile(path, facts.size, str(facts.etag))


def _is_safe(path: str) -> bool:
    """It stays in the folder that it is written to, and is not hidden there."""
    return not any(part.startswith(".") or not part for part in path.split("/"))


def _weights(names: list[str]) -> list[str]:
    top = [name for name in names if "/" not in name]
    for pattern in WEIGHTS:
        if found := [name for name in top if fnmatch(name, pattern)]:
            return found
    return [name for name in top if name.endswith(".safetensors")]


def _what_instead(names: list[str], source: HubSource) -> str:
    if found := gguf_names(names):
        return f"it has GGUF files only. Name one as in 'hf:{source}:{quantisations(found)[0]}'."
    if any(name.endswith((".bin", ".pt", ".pth", ".pickle")) for name in names):
        return (
            "they are pickles, which can run programs and are not read."
            " Name a repository with .safetensors files."
        )
    return "it has no .safetensors file. Is it a model?"


def _began(answer: "httpx2.Response", start: int) -> int:
    """Where the body begins: a server may ignore the range and send all."""
    if answer.status_code != 206:
        return 0
    stated = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(stated[1]) if stated else start


def _the(source: HubSource) -> str:
    return f"{source.repository!r} at {endpoint()}"


@contextmanager
def _plain_words(source: HubSource, *, passing: bool = False) -> Iterator[None]:
    """What the client library and its HTTP library raise, as Interrupted (if `passing`) or ModelUnavailable."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise ModelUnavailable(
            f"{source} is not here, and HF_HUB_OFFLINE forbids fetching it. Unset it, or copy the model's folder"
            " here and name that as the source."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if passing and status in PASSING:
            raise Interrupted(f"the hub answered {status}") from error
        raise ModelUnavailable(_refusal(source, error, status)) from error
    except errors.HFValidationError as error:
        raise ModelUnavailable(f"{source} is not the name of a repository: {error}") from error
    except _transport_errors() as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        if passing:
            raise Interrupted(said) from error
        raise ModelUnavailable(
            f"Could not fetch {source}: {endpoint()} can't be reached ({said}). Check the network and its proxy;"
            " HF_ENDPOINT names another hub or mirror."
        ) from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """Of the library that the client speaks HTTP by: httpx2, and before its second version httpx."""
    spoken = (sys.modules.get(name) for name in ("httpx2", "httpx"))
    return tuple(library.TransportError for library in spoken if library is not None)


def _refusal(source: HubSource, error: Exception, status: int) -> str:
    """The sentence for a refused request: what was asked, and what to do next."""
    from huggingface_hub import errors, get_token

    who = "the account of your HF_TOKEN" if get_token() else "you"
    if isinstance(error, errors.GatedRepoError):
        token = "" if get_token() else " Then set HF_TOKEN to a token of that account."
        return (
            f"{_the(source)} is gated and {who} may not fetch it: accept its terms at"
            f" {endpoint()}/{source.repository} first.{token}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{_the(source)} has no revision {source.revision!r}. Name a branch, a tag or a commit of it,"
            " or none for its main branch."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"There is no {_the(source)}, or it is private and {who} may not see it. Check the name;"
            " for a private one set HF_TOKEN to a token that may read it."
        )
    if status == 401:
        return f"{endpoint()} does not take your HF_TOKEN. Set another, or unset it for what is public."
    if isinstance(error, errors.DisabledRepoError):
        return f"{_the(source)} has been disabled by the hub. Name another repository."
    if status == 429:
        return f"{endpoint()} says that you ask too often. Wait some minutes, or set HF_TOKEN to be allowed more."
    if status in PASSING:
        return f"{endpoint()} answers {status} at the moment, so {source} can't be fetched. Try again later."
    said = str(error).strip().partition("\n")[0]
    return f"Could not fetch {source}: {endpoint()} answered {status} ({said})."
