"""Errors of the Hub with a hint: what failed, the Hub's answer, and what to do. Its exception is kept as the cause.

The result is an `OSError`, whichever HTTP library huggingface_hub uses.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN (tokens: https://huggingface.co/settings/tokens)."
# The more specific classes come first.
HINTS: dict[type[Exception], str] = {
    LocalTokenNotFoundError: f"no token of the Hub is set. {LOG_IN}",
    OfflineModeIsEnabled: "the Hub cannot be reached: HF_HUB_OFFLINE is set, and nothing is in the cache. Unset it.",
    GatedRepoError: f"'{{repo_id}}' is gated: request access on its page, then log in. {LOG_IN}",
    RevisionNotFoundError: "'{repo_id}' has no branch, tag or commit '{revision}'. Its page on the Hub lists them.",
    LocalEntryNotFoundError: "it is not in the cache, and the Hub cannot be reached: there is no connection, or "
    "HF_HUB_OFFLINE is set.",
    EntryNotFoundError: "'{repo_id}' does not have the requested file ({first_line}).",
}


class HubError(OSError):
    """The Hub, or the connection to it, failed; the exception of huggingface_hub is the cause."""


@contextlib.contextmanager
def hub_errors(
    action: str, repo_id: str, repo_type: str = "model", *, revision: str | None = None, again: str = ""
) -> Iterator[None]:
    """Turn exceptions of the Hub inside the block into a `HubError` with a hint; other errors are not changed.

    Args:
        action: the attempted action ("pushing the model to 'user/name'"), at the start of the message.
        repo_id, repo_type, revision: what was requested.
        again: what to do if the connection broke or the Hub was busy.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as err:
        cause = _hub_cause(err)
        if cause is None or isinstance(err, HubError):
            raise
        raise HubError(f"{action}: {_hint(cause, repo_id, repo_type, revision, again)}") from cause


def check_name(name: str, repo_type: str = "model") -> None:
    """Refuse a name that is neither a local folder nor a valid id of the Hub."""
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ValueError(f"there is no folder '{name}', and it is not a {repo_type} id of the Hub (owner/name).")


def _hub_cause(error: BaseException) -> Exception | None:
    """Return the Hub's exception in a chain of causes; a missing token or entry is more specific than its wrapper."""
    err: BaseException | None = error
    seen: set[int] = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        cause = err.__cause__ or (None if err.__suppress_context__ else err.__context__)
        if isinstance(err, LocalEntryNotFoundError) and isinstance(cause, (HTTPError, OfflineModeIsEnabled)):
            return cause
        if isinstance(err, (HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, EntryNotFoundError)):
            return err
        err = cause
    return None


def _hint(err: Exception, repo_id: str, repo_type: str, revision: str | None, again: str) -> str:
    """Return what the Hub answered and what to do."""
    first_line = next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
    for kind, hint in HINTS.items():
        if isinstance(err, kind):
            return hint.format(repo_id=repo_id, revision=revision, first_line=first_line)
    if isinstance(err, RepositoryNotFoundError):
        other = "dataset" if repo_type == "model" else "model"
        with contextlib.suppress(HTTPError, OSError):  # only used to make the message more specific
            if HfApi().repo_exists(repo_id, repo_type=other):
                return f"'{repo_id}' is a {other} on the Hub; expected a {repo_type}. Give the id of a {repo_type}."
        return (
            f"the Hub has no {repo_type} '{repo_id}', or it is private, and there is no such local folder. Check the "
            f"name. For a private one: {LOG_IN}"
        )
    again = again or "Try again later."
    if not isinstance(err, HfHubHTTPError):
        return f"the connection broke ({first_line}). {again}"
    status, answer = err.response.status_code, " ".join((err.server_message or first_line).split())
    if status == 401:
        return f"the Hub refuses your token ({answer}). HF_TOKEN takes precedence over a saved login. {LOG_IN}"
    if status == 403:
        owner = repo_id.split("/")[0]
        return f"your token is not allowed to do this ({answer}). Use one with write access to '{owner}'. {LOG_IN}"
    final = status < 500 and status not in (408, 409, 412, 429)
    return f"the Hub answers {status} ({answer})." + ("" if final else f" {again}")
