"""How a client and its broker know each other: a token that may be renewed, and authorities."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pulsar
import pytest
from support.certificates import make_certificate

from mlflow_flywheel.pipelines.config import ModelRef, StreamConfig
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.stream.access import Access
from mlflow_flywheel.pipelines.stream.pulsar import translated


def access(**settings: Any) -> Access:
    names = (
        "deployment",
        "spool",
        "status_file",
        "input_topic",
        "output_topic",
        "dead_letter_topic",
        "subscription",
    )
    model = ModelRef(name="m", version="1", path="")
    return Access.of(StreamConfig(broker="pulsar://a", model=model, **dict.fromkeys(names, ""), **settings))


def test_nobody_needs_a_token_where_none_is_wanted() -> None:
    assert access().token is None


def test_a_token_is_read_again_each_time_and_the_last_one_holds_while_it_is_renewed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    token = access(broker_token_file=str(file)).token
    assert token is not None and token() == "first"
    file.write_text("second")
    assert token() == "second"
    file.write_text("")
    assert token() == "second"
    file.unlink()
    assert token() == "second"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), (" \n", "is empty"), ("a b", "spaces")]
)
def test_a_file_without_a_token_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadInput, match=f"{file}.*{said}"):
        access(broker_token_file=str(file))


def test_the_systems_authorities_count_where_none_is_given(tmp_path: Path) -> None:
    assert "BEGIN CERTIFICATE" in Path(Access().trusted_certificates()).read_text()
    certificate, _ = make_certificate(tmp_path)
    assert Access(ca_file=certificate).trusted_certificates() == certificate


def test_a_broker_that_takes_connections_and_says_nothing_is_asked_for_the_token() -> None:
    def said(url: str) -> str:
        with pytest.raises(Unavailable) as error, translated(url):
            raise pulsar.Timeout("")
        return error.value.message

    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        here, away = (f"127.0.0.1:{each.getsockname()[1]}" for each in (silent, taken))
        for url in (f"pulsar://{here}", f"pulsar+ssl://{away},{here}/"):
            assert "token looks like that: check the token (broker_token_env" in said(url)
        assert (
            said(f"pulsar://{away}")
            == f"nothing answers at the broker pulsar://{away}; check that it runs there"
        )
