"""Errors of the Hub: one sentence each; others stay what they are."""

import pytest
from huggingface_hub.utils import get_session

from diffusers_ct.hub_errors import HubError, hub_errors_in_words, in_words


def test_other_errors_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), hub_errors_in_words("user/x"):
        raise ZeroDivisionError
    assert in_words(ValueError("no"), "user/x") is None


def test_a_connection_that_is_refused_is_told(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    with pytest.raises(HubError, match="The Hub cannot be reached"), hub_errors_in_words("user/x"):
        get_session().get("http://127.0.0.1:9")  # the port of a service that throws everything away


def test_a_sentence_is_not_made_twice():
    with pytest.raises(HubError, match="first"), hub_errors_in_words("user/x"):
        raise HubError("first")
