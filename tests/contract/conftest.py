"""Both kinds of broker, for the suites that every broker must pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.either_broker import EitherBroker
from support.streams import BrokerProcess


@pytest.fixture(scope="module", params=["embedded", pytest.param("apache", marks=pytest.mark.apache)])
def either_broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EitherBroker]:
    """Return the embedded broker, then Apache Pulsar where there is one."""
    if request.param == "apache":
        yield EitherBroker(request.getfixturevalue("apache_pulsar"))
        return
    broker = BrokerProcess(tmp_path_factory.mktemp("broker"))
    yield EitherBroker(broker)
    broker.stop()
