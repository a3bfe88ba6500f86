"""The edge where strings become a spec: every default holds, and what does not fit is told with its remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.plugin.help import help_text
from mlflow_flywheel.plugin.spec import MODES, BatchSpec, Mode, StreamSpec, WebSpec
from mlflow_flywheel.plugin.spec_keys import keys, loop_keys
from mlflow_flywheel.plugin.spec_reading import check_name, parse_loop, parse_spec


def refusal(raw: Mapping[str, str]) -> str:
    with pytest.raises(BadInput) as caught:
        parse_spec(raw)
        parse_loop(raw)
    return caught.value.message


def test_a_mode_alone_is_enough() -> None:
    assert parse_spec({"mode": "web"}) == WebSpec()
    assert parse_spec({"mode": "stream"}) == StreamSpec()
    assert parse_spec({"mode": "batch"}) == BatchSpec()


def test_a_trial_that_could_not_be_judged_is_refused() -> None:
    given = {"mode": "web", "challenger": "models:/m@challenger"}
    assert parse_spec({**given, "traffic_percentage": "2.5"}) == WebSpec(
        challenger="models:/m@challenger", traffic_percentage=2.5
    )
    assert parse_spec({**given, "challenger_mode": "canary", "log": "none"})
    assert "challenger_mode=shadow needs log=all" in refusal({**given, "log": "none"})
    assert "needs variant=champion" in refusal({**given, "variant": "challenger"})
    assert "traffic_percentage='101'" in refusal({**given, "traffic_percentage": "101"})
    assert "challenger_mode='canari'" in refusal({**given, "challenger_mode": "canari"})
    assert parse_spec({"mode": "web", "challenger": "", "challenger_mode": "shadow", "log": "none"})


@pytest.mark.parametrize("mode", MODES)
def test_every_default_in_the_help_is_what_one_gets_by_writing_it(mode: Mode) -> None:
    written = {key.name: key.default for key in keys(mode) if key.default not in ("", "required")}
    assert len(written) >= 4
    assert parse_spec({"mode": mode, **written}) == parse_spec({"mode": mode})


def test_every_default_of_the_loop_is_what_one_gets_by_writing_it() -> None:
    from mlflow_flywheel.monitors.policy import PolicySpec

    settings = parse_loop({key.name: key.default for key in loop_keys()})
    assert set(settings) == set(PolicySpec.model_fields)
    assert PolicySpec.parse(settings) == PolicySpec()


def test_texts_become_values() -> None:
    web = parse_spec({"mode": "web", "port": "5001", "durability": "power", "id_column": "flight"})
    assert isinstance(web, WebSpec)
    assert (web.port, web.durability, web.id_column) == (5001, "power", "flight")
    batch = parse_spec({"mode": "batch", "passthrough": "flight, carrier,", "chunk_rows": "100"})
    assert isinstance(batch, BatchSpec)
    assert (batch.passthrough, batch.chunk_rows) == (("flight", "carrier"), 100)


def test_fields_are_paths_by_name() -> None:
    raw = {"mode": "stream", "field.temp": "weather.temp_f", "field.mode": "m.0", "field.gone": ""}
    spec = parse_spec({**raw, "properties": "a, b"})
    assert isinstance(spec, StreamSpec)
    assert spec.field == {"temp": "weather.temp_f", "mode": "m.0"}
    assert spec.properties == ("a", "b")
    assert "'a..b' is no path" in refusal({"mode": "stream", "field.a": "a..b"})
    assert "did you mean 'field.NAME'?" in refusal({"mode": "stream", "field": "a"})
    assert "unknown key 'field.'" in refusal({"mode": "stream", "field.": "a"})
    assert "belongs to mode stream, not to mode web" in refusal({"mode": "web", "field.a": "a"})
    twice = {"mode": "stream", "field.event_time": "at", "timestamp_column": "at"}
    assert "give field.event_time or timestamp_column, not both" in refusal(twice)


def test_a_stream_may_start_at_a_time() -> None:
    for written in ("2026-01-31", "2026-01-31T00:00:00Z", "2026-01-31T01:00:00+01:00"):
        spec = parse_spec({"mode": "stream", "start_position": written})
        assert isinstance(spec, StreamSpec)
        assert spec.start_position == "2026-01-31T00:00:00+00:00"


def test_an_empty_value_means_the_default() -> None:
    assert parse_spec({"mode": "web", "port": "", "id_column": ""}) == WebSpec()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            {"mode": "web", "prot": "5001"},
            r"unknown key 'prot' for mode web \(did you mean 'port'\?\); known: ",
        ),
        ({"mode": "web", "xyzzy": "1"}, r"unknown key 'xyzzy' for mode web; known: mode, .*loop\.\*"),
        ({"mode": "web", "xyzzy": ""}, r"unknown key 'xyzzy'"),
        ({"mode": "stream", "input_topik": "x"}, r"did you mean 'input_topic'"),
        ({"mode": "web", "schedule": "0 2 * * *"}, r"'schedule' belongs to mode batch, not to mode web"),
        ({"mode": "batch", "workers": "2"}, r"'workers' belongs to mode web and stream, not to mode batch"),
        ({}, r"the mode is missing: give one of mode=web, mode=stream or mode=batch \(-C mode=web\)"),
        ({"mode": ""}, r"the mode is missing"),
        ({"port": "1"}, r"the mode is missing"),
        ({"mod": "web"}, r"the mode is missing \(you gave 'mod'\?\)"),
        ({"mode": "wbe"}, r"mode 'wbe' does not exist \(did you mean 'web'\?\); known: web, stream, batch"),
        ({"mode": "lambda"}, r"mode 'lambda' does not exist; known: web, stream, batch"),
        ({"mode": "WEB"}, r"mode 'WEB' does not exist"),
    ],
)
def test_keys_and_modes_that_do_not_exist(raw: dict[str, str], said: str) -> None:
    assert re.match(said, refusal(raw)) or re.search(said, refusal(raw))


@pytest.mark.parametrize(
    ("raw", "key", "value", "remedy"),
    [
        ({"mode": "web", "port": "high"}, "port", "high", "integer"),
        ({"mode": "web", "port": "70000"}, "port", "70000", "65535"),
        ({"mode": "web", "workers": "0"}, "workers", "0", "greater than or equal to 1"),
        ({"mode": "web", "threads": "1.5"}, "threads", "1.5", "integer"),
        ({"mode": "web", "log": "some"}, "log", "some", "'all' or 'none'"),
        ({"mode": "web", "variant": "canary"}, "variant", "canary", "'champion' or 'challenger'"),
        (
            {"mode": "stream", "start_position": "middle"},
            "start_position",
            "middle",
            "'earliest' or 'latest'",
        ),
        ({"mode": "stream", "broker": "localhost:6650"}, "broker", "localhost:6650", "pulsar://host:6650"),
        ({"mode": "stream", "broker": "pulsar://"}, "broker", "pulsar://", "pulsar://host:6650"),
        ({"mode": "batch", "timezone": "Mars/Olympus"}, "timezone", "Mars/Olympus", "Europe/Berlin"),
        ({"mode": "batch", "timezone": "../etc"}, "timezone", "../etc", "Europe/Berlin"),
        ({"mode": "batch", "chunk_rows": "many"}, "chunk_rows", "many", "integer"),
    ],
)
def test_a_value_that_does_not_fit_names_key_value_and_remedy(
    raw: dict[str, str], key: str, value: str, remedy: str
) -> None:
    said = refusal(raw)
    assert said.startswith(f"{key}={value!r}: ")
    assert remedy in said
    assert "\n" not in said


def test_all_wrong_values_are_told_at_once() -> None:
    said = refusal({"mode": "web", "port": "x", "workers": "y"})
    assert "port='x'" in said and "workers='y'" in said


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"mode": "stream", "broker_token_env": "T"}, r"broker_token_env needs broker= too"),
        (
            {"mode": "stream", "broker": "pulsar://a:1", "broker_ca_file": "ca.pem"},
            r"broker_ca_file needs broker=pulsar\+ssl://host:6651, got broker=pulsar://a:1",
        ),
        (
            {"mode": "stream", "broker": "pulsar://a", "broker_token_env": "T", "broker_token_file": "t"},
            r"broker_token_env or broker_token_file, not both",
        ),
        ({"mode": "batch", "schedule": "0 2 * * *"}, r"schedule needs input="),
        ({"mode": "batch", "schedule": "tomorrow", "input": "in"}, r"'tomorrow'.*five fields"),
        ({"mode": "batch", "schedule": "61 2 * * *", "input": "in"}, r"'61 2 \* \* \*'"),
        ({"mode": "batch", "query": "SELECT 1"}, r"query needs input="),
        ({"mode": "batch", "watermark": "id"}, r"watermark needs input="),
        (
            {"mode": "batch", "query": "SELECT 1", "input": "sqlite:///a", "schedule": "0 2 * * *"},
            r"all of query= every time; name a column that only grows with watermark=",
        ),
    ],
)
def test_keys_that_do_not_go_together(raw: dict[str, str], said: str) -> None:
    assert re.search(said, refusal(raw))


def test_workers_order_and_security_of_a_real_broker() -> None:
    keys = {"workers": "2", "ordering": "key", "broker_ca_file": "ca.pem", "broker_token_env": "TOKEN"}
    spec = parse_spec({"mode": "stream", "broker": "pulsar+ssl://a:6651,b:6651", **keys})
    assert isinstance(spec, StreamSpec) and (spec.workers, spec.ordering) == (2, "key")
    assert spec.broker_ca_file == str(Path("ca.pem").absolute())


@pytest.mark.parametrize(("mode", "key"), [("web", "auth_token_env"), ("stream", "broker_token_env")])
def test_a_token_in_the_place_of_its_variable_is_not_repeated(mode: str, key: str) -> None:
    said = refusal(
        {"mode": mode, "broker": "pulsar://a", key: "eyJh.secret"}
        if mode == "stream"
        else {"mode": mode, key: "eyJh.secret"}
    )
    assert "never the token itself" in said and "secret" not in said


def test_loop_keys_are_for_the_policy() -> None:
    raw = {"mode": "web", "loop.retrain_on": "performance,labels", "loop.cooldown": "12h"}
    assert parse_spec(raw) == WebSpec()
    assert parse_loop(raw) == {"retrain_on": "performance,labels", "cooldown": "12h"}
    assert parse_loop({"mode": "web"}) == {}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            {"mode": "web", "loop.coldown": "7d"},
            r"'coldown' \(did you mean 'cooldown'\?\); known: .*cooldown",
        ),
        ({"mode": "web", "loop.": "7d"}, r"unknown loop setting ''"),
        ({"mode": "web", "loop.cooldown": "soon"}, r"cooldown='soon'"),
        ({"mode": "web", "loop.min_rows": "few"}, r"min_rows='few'.*integer"),
        ({"mode": "web", "loop.retrain_on": "boredom"}, "retrain_on='boredom'.*known: .*performance"),
    ],
)
def test_loop_keys_that_do_not_fit(raw: dict[str, str], said: str) -> None:
    assert re.search(said, refusal(raw))


@pytest.mark.parametrize("name", ["late-web", "a", "7", "a.b_c-d", "x" * 63])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Late", "-late", ".late", "a b", "a/b", "../a", "x" * 64, "läte", "a\n"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BadInput, match="lower-case letters"):
        check_name(name)


@pytest.mark.parametrize("mode", MODES)
def test_the_help_explains_every_key(mode: Mode) -> None:
    section = help_text().partition(f"Keys of mode={mode} ")[2].partition("Keys of ")[0]
    for key in keys(mode):
        assert key.help, f"{key.name} has no description"
        assert re.search(rf"^  {re.escape(key.name)}( |$)", section, re.MULTILINE), key.name
    for key in loop_keys():
        assert key.help and f"\n  {key.name}  (" in help_text()
