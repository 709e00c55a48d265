"""Errors of the Hub with a hint: what failed, what the Hub said, what to do. Its own exception stays the cause.
What comes out is an `OSError`, whichever HTTP library huggingface_hub stands on."""

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


KINDS = {"model": "model", "dataset": "data set"}  # what messages call a repository of a type
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN (tokens: https://huggingface.co/settings/tokens)."


class HubError(OSError):
    """The Hub, or the way to it, failed; the exception of huggingface_hub is the cause."""


@contextlib.contextmanager
def hub_errors(
    action: str, repo_id: str, repo_type: str = "model", *, revision: str | None = None, again: str = ""
) -> Iterator[None]:
    """Turn what the Hub raises inside the block into a `HubError` with a hint; other errors travel as they are.

    Args:
        action: what was tried ("pushing the model to 'user/name'"); the message begins with it.
        repo_id: "user/name".
        repo_type: "model" or "dataset".
        revision: branch, tag or commit that was asked for.
        again: what to do where the connection broke or the Hub was busy.

    Raises:
        HubError: from the exception of huggingface_hub.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as err:
        cause = _of_the_hub(err)
        if cause is None or isinstance(err, HubError):
            raise
        raise HubError(f"{action}: {_hint(cause, repo_id, repo_type, revision, again)}") from cause


def check_name(name: str, repo_type: str = "model") -> None:
    """Refuse a name that is no folder here and, by its form, no id of the Hub either.

    Raises:
        ValueError: naming it.
    """
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ValueError(
            f"there is no folder '{name}', and it is no {KINDS[repo_type]} id of the Hub (owner/name) either."
        )


def _of_the_hub(err: BaseException) -> Exception | None:
    """The Hub's exception in a chain of causes; a missing token or a missing entry says more than what hides it."""
    chain, seen = err, set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        cause = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
        if isinstance(chain, LocalEntryNotFoundError) and isinstance(cause, (HTTPError, OfflineModeIsEnabled)):
            return cause
        if isinstance(chain, (HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, EntryNotFoundError)):
            return chain
        chain = cause
    return None


def _hint(err: Exception, repo_id: str, repo_type: str, revision: str | None, again: str) -> str:
    kind = KINDS[repo_type]
    status = err.response.status_code if isinstance(err, HfHubHTTPError) else None
    if isinstance(err, LocalTokenNotFoundError):
        return f"no token of the Hub is set. {LOG_IN}"
    if isinstance(err, OfflineModeIsEnabled):
        return "the Hub cannot be reached: HF_HUB_OFFLINE is set, and nothing of it is in the cache. Unset it."
    if isinstance(err, GatedRepoError):
        return f"'{repo_id}' is open to those it admits only: ask for access on its page, then log in. {LOG_IN}"
    if isinstance(err, RepositoryNotFoundError):
        other = next(name for name in KINDS if name != repo_type)
        if _exists(repo_id, other):
            return f"'{repo_id}' is a {KINDS[other]} on the Hub; wanted a {kind}. Give the id of a {kind}."
        return (
            f"the Hub has no {kind} '{repo_id}', or a private one that you may not see, and there is no such folder "
            f"here. Check the name. For a private one: {LOG_IN}"
        )
    if isinstance(err, RevisionNotFoundError):
        return f"'{repo_id}' has no branch, tag or commit '{revision}'. Its page on the Hub lists them."
    if isinstance(err, LocalEntryNotFoundError):
        return (
            "it is not in the cache, and the Hub cannot be reached: there is no connection, or HF_HUB_OFFLINE is set."
        )
    if isinstance(err, EntryNotFoundError):
        return f"'{repo_id}' does not hold what was looked for ({_first_line(err)})."
    if status == 401:
        return f"the Hub refuses your token ({_said(err)}). HF_TOKEN wins over a saved login. {LOG_IN}"
    if status == 403:
        owner = repo_id.split("/")[0]
        return f"your token may not do this ({_said(err)}). Take one with write access to '{owner}'. {LOG_IN}"
    if status is not None and status < 500 and status not in (408, 409, 412, 429):
        return f"the Hub answers {status} ({_said(err)})."
    reason = f"the Hub answers {status} ({_said(err)})" if status else f"the connection broke ({_first_line(err)})"
    return f"{reason}. {again or 'Try again later.'}"


def _exists(repo_id: str, repo_type: str) -> bool:
    try:
        return HfApi().repo_exists(repo_id, repo_type=repo_type)
    except (HTTPError, OSError):  # no answer to a question that only sharpens a message
        return False


def _said(err: HfHubHTTPError) -> str:
    return " ".join((err.server_message or _first_line(err)).split())


def _first_line(err: Exception) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0] if lines else type(err).__name__
