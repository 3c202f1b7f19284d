"""Errors of the Hub in one sentence each, which says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_UNREACHABLE = (OfflineModeIsEnabled, RevisionResolutionError, LocalEntryNotFoundError)


class HubError(ValueError):
    """The Hub could not do what was asked."""


@contextmanager
def hub_errors_in_words(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> Iterator[None]:
    """A context in which errors of the Hub, also those that another library wraps, become a `HubError`; others stay.

    Args:
        repo_id: "owner/name" that is read or written.
        revision: of it.
        token: that was given for this alone.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        sentence = in_words(error, repo_id, revision=revision, token=token)
        if sentence is None:
            raise
        raise HubError(sentence) from error


def why_not(
    repo_id: str, *, repo_type: str, revision: str | None = None, token: str | bool | None = None
) -> str | None:
    """Asks the Hub why a repository cannot be read, for libraries that do not pass it on; None if it can be.

    Args:
        repo_id: "owner/name".
        repo_type: "model" or "dataset".
        revision: of it.
        token: that was given for this alone.
    """
    try:
        HfApi(token=token).repo_info(repo_id, repo_type=repo_type, revision=revision)
    except Exception as error:
        return in_words(error, repo_id, revision=revision, token=token)
    return None


def in_words(
    error: BaseException, repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> str | None:
    """One sentence for an error that comes from the Hub; None for another one."""
    chain = _chain(error)

    def first(*kinds: type[BaseException]) -> BaseException | None:
        return next((link for link in chain if isinstance(link, kinds)), None)

    statuses = [link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)]
    logged_in = isinstance(token, str) or (token is not False and get_token() is not None)
    if first(GatedRepoError):
        then = "with the account that you are logged in with" if logged_in else f"and {_LOG_IN}"
        return f"{repo_id} is gated: ask for access on its page on the Hub {then}."
    if first(RevisionNotFoundError):
        return f"{repo_id} has no revision {revision or 'main'!r}."
    if first(RepositoryNotFoundError):
        why = "or it is private and your token may not read it" if logged_in else f"or it is private: {_LOG_IN}"
        return f"There is no {repo_id} on the Hub, {why}."
    if 401 in statuses:
        if logged_in:
            return (
                "The Hub does not accept your token: make a new one, and log in with `hf auth login` or set HF_TOKEN."
            )
        return f"The Hub wants to know who you are: {_LOG_IN}."
    if 403 in statuses:
        return f"The Hub does not let you do this with {repo_id}: your token lacks the right."
    if error_of_server := [status for status in statuses if status >= 500 or status == 429]:
        return f"The Hub is busy or broken (status {error_of_server[0]}): give the same command again later."
    if invalid := first(HFValidationError):
        return f"{repo_id!r} can be no repository: {str(invalid).splitlines()[0].rstrip('.')}."
    if first(*_UNREACHABLE) or any(_is_of_transport(link) for link in chain):
        if constants.is_offline_mode():
            return (
                f"HF_HUB_OFFLINE is set, and what is needed of {repo_id} is not in this machine's cache: unset it once."
            )
        return f"The Hub cannot be reached, and what is needed of {repo_id} is not in this machine's cache."
    return None


def _is_of_transport(error: BaseException) -> bool:
    """Whether the connection failed; the HTTP library of huggingface_hub has another name in each of its versions."""
    return any(
        kind.__name__ == "TransportError" and kind.__module__.startswith("httpx") for kind in type(error).__mro__
    )


def _chain(error: BaseException) -> list[BaseException]:
    """The error, and those it was raised from or while handling."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links
