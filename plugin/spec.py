"""Every key that `-C` takes: its mode, type, default and help. The only list of them.

`spec_reading.py` makes specs of what people give; help texts and the configuration reference in the documentation are
drawn from here by `spec_keys.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mlflow_flywheel.pipelines.config import Adjust, Durability, Frozen, OnError, TrialMode
from mlflow_flywheel.pipelines.stream.fields import EVENT_TIME, REQUEST_ID, steps_of
from mlflow_flywheel.pipelines.times import parse_time

Mode = Literal["web", "stream", "batch"]
MODES: tuple[Mode, ...] = get_args(Mode)
LOOP_PREFIX = "loop."
FIELD_PREFIX = "field."
FIELD_KEY = FIELD_PREFIX + "NAME"


def _list(value: object) -> object:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def checked_variable(value: str | None) -> str | None:
    """Return the name of an environment variable. Raises ValueError, without the value: it may be a secret."""
    if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("is no name of an environment variable; give its name, never the token itself")
    return value


def absolute_path(value: str | None) -> str | None:
    """Return a path as it means the same in every folder."""
    return None if value is None else str(Path(value).expanduser().absolute())


class CommonSpec(Frozen):
    """Keys of every mode."""

    mode: Mode = Field(description="how the model is served: web, stream or batch")
    variant: Literal["champion", "challenger"] = Field(
        "champion", description="role of this deployment's predictions in the inference table"
    )
    log: Literal["all", "none"] = Field(
        "all", description="write every prediction to the inference table, or none"
    )
    log_exclude: Annotated[tuple[str, ...], BeforeValidator(_list)] = Field(
        (),
        description="features to leave out of the inference table (null there), comma-separated; neither monitors nor "
        "retraining can use them then",
    )
    log_sample: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the rows to log, chosen by a hash of client_request_id (else prediction_id)",
    )
    id_column: str | None = Field(
        None, description="input column with your own key of a row (client_request_id); labels may use it"
    )
    timestamp_column: str | None = Field(
        None,
        description="input column with the time that a row is about (event_time); monitors' windows use it",
    )


class OnlineSpec(CommonSpec):
    """Keys of the modes that keep a process running."""

    durability: Durability = Field(
        "process",
        description="what an answered prediction survives: a killed process, or a power cut (slower)",
    )


class WebSpec(OnlineSpec):
    """A web service that speaks the protocol of MLflow's scoring server."""

    mode: Literal["web"] = Field(
        "web", description="an HTTP service that speaks the protocol of MLflow's scoring server"
    )
    host: str = Field(
        "127.0.0.1", description="address to listen on; only this machine can reach the default"
    )
    port: int = Field(0, ge=0, le=65535, description="port to listen on; 0 takes a free one and keeps it")
    workers: int = Field(1, ge=1, le=64, description="worker processes")
    threads: int = Field(8, ge=1, le=256, description="requests that one worker answers at a time")
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1024, description="largest request body")
    max_rows: int = Field(10_000, ge=1, description="most rows in one request")
    max_queue: int = Field(256, ge=1, description="requests that may wait; more get status 429")
    max_batch_size: int = Field(
        256,
        ge=1,
        description="most rows of waiting requests that the model is asked at once; 1 asks it for each alone",
    )
    batch_wait_ms: float = Field(
        0.0, ge=0, le=1000, description="how long a request waits for others to be scored with it"
    )
    timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="longest wait for an answer; then status 504"
    )
    challenger: str | None = Field(
        None, description="another version of the model to try beside it, such as models:/NAME@challenger"
    )
    challenger_mode: TrialMode = Field(
        "shadow", description="the challenger is asked too but not heard, or answers a share of the callers"
    )
    traffic_percentage: float = Field(
        10.0, ge=0, le=100, description="share of callers that a canary answers, the same ones each time"
    )
    auth_token_env: str | None = Field(
        None,
        description="environment variable with the token that callers must send (Authorization: Bearer ...); it is read "
        "when the deployment is created or updated, and kept in a private file of the home",
    )
    auth_token_file: str | None = Field(None, description="or a file with it, read at the same times")
    insecure: bool = Field(
        False, description="listen beyond this machine without a token: everybody who reaches it may ask"
    )
    tls_cert: str | None = Field(
        None,
        description="PEM certificate (with its chain): https instead of http, TLS 1.2 or newer; to change between the two "
        "later restarts the service",
    )
    tls_key: str | None = Field(None, description="the certificate's PEM key, without a password")
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_list)] = Field(
        (),
        description="origins whose pages may ask from a browser, such as https://a.example,https://b.example",
    )
    access_log: bool = Field(
        False, description="write a line of JSON for each request to the deployment's log"
    )

    @field_validator("auth_token_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        return checked_variable(value)

    @field_validator("auth_token_file", "tls_cert", "tls_key")
    @classmethod
    def _path(cls, value: str | None) -> str | None:
        return absolute_path(value)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", origin):
                raise ValueError(
                    f"{origin!r} is no origin: give scheme, lower-case host and port as browsers send them, such as "
                    "https://a.example or http://localhost:3000, without a path and without *"
                )
        return value

    @model_validator(mode="after")
    def _one_source_of_each(self) -> WebSpec:
        if self.auth_token_env is not None and self.auth_token_file is not None:
            raise ValueError("give auth_token_env or auth_token_file, not both: there is one token")
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_key", "tls_cert") if self.tls_cert is None else ("tls_cert", "tls_key")
            raise ValueError(f"{given} needs {missing} too: TLS takes a certificate and its private key")
        return self

    @model_validator(mode="after")
    def _trial_can_be_judged(self) -> WebSpec:
        if self.challenger is None:
            return self
        if self.variant == "challenger":
            raise ValueError(
                f"challenger={self.challenger!r} needs variant=champion: a deployment that is a challenger itself has "
                "no other one beside it"
            )
        if self.log == "none" and self.challenger_mode == "shadow":
            raise ValueError("challenger_mode=shadow needs log=all: what a shadow says is only ever logged")
        return self


class StreamSpec(OnlineSpec):
    """A consumer of a Pulsar topic that publishes its predictions to another one."""

    mode: Literal["stream"] = Field(
        "stream", description="a consumer of a Pulsar topic that publishes its predictions"
    )
    broker: str | None = Field(
        None,
        description="broker URL, pulsar://host:6650 or pulsar+ssl://host:6651; by default the one that is kept in the "
        "home, see 'flywheel broker'",
    )
    broker_token_env: str | None = Field(
        None,
        description="environment variable with the token that the broker wants; it is read when the deployment is "
        "created or updated, and kept in a private file of the home",
    )
    broker_token_file: str | None = Field(
        None, description="or a file with it, which stays where it is and is read again for each connection"
    )
    broker_ca_file: str | None = Field(
        None,
        description="PEM certificate of the authority that signed the broker's; without it the system's authorities "
        "count",
    )
    input_topic: str | None = Field(None, description="topic to read; default NAME-in")
    output_topic: str | None = Field(None, description="topic for predictions; default NAME-out")
    feedback_topic: str | None = Field(None, description="topic to read labels from; default NAME-feedback")
    dead_letter_topic: str | None = Field(
        None, description="topic for messages that cannot be scored; default INPUT_TOPIC-SUBSCRIPTION-DLQ"
    )
    subscription: str | None = Field(
        None, description="name of the subscription on the input topic; default NAME"
    )
    start_position: str = Field(
        "earliest",
        description="where a new subscription starts in the input topic: earliest, latest, or a time such as "
        "2026-01-31T00:00:00Z (what was published before it is passed over)",
    )
    batch_max: int = Field(1000, ge=1, le=100_000, description="most messages scored at once")
    batch_wait_ms: int = Field(5, ge=1, le=10_000, description="longest wait for a batch to fill")
    max_message_bytes: int = Field(
        1024 * 1024, ge=64, description="larger messages go to the dead-letter topic"
    )
    workers: int = Field(1, ge=1, le=64, description="worker processes; the embedded broker takes one")
    ordering: Literal["none", "key"] = Field(
        "none",
        description="key: all messages of a key go to one worker and are answered in their order (Apache Pulsar only; "
        "who publishes must batch by key or not at all)",
    )
    input_format: Literal["json", "avro"] = Field(
        "json",
        description="what messages are: JSON objects (also of a JSON schema), or Avro records of the topic's schema "
        "(Apache Pulsar; needs mlflow-flywheel[avro])",
    )
    field: Mapping[str, str] = Field(
        {},
        description="where in a message a feature is, when not under its own name: field.temp=weather.temp_f, list "
        "entries by number (readings.0.value, readings.-1.value), a dot in a name as \\.; also "
        "field.client_request_id and field.event_time",
    )
    properties: Annotated[tuple[str, ...], BeforeValidator(_list)] = Field(
        ("*",), description="message properties to repeat on the answer, comma-separated; * is all of them"
    )
    adjust: Adjust = Field(
        "off",
        description="live adjustment to the labels of the feedback topic: bias (a regressor's mean error), recalibrate (a "
        "classifier's probabilities), partial_fit (the estimator goes on learning); it answers only while it has lately "
        "been better than the model",
    )
    adjust_window: int = Field(
        500, ge=50, le=10_000, description="newest labels that bias and recalibrate are fitted to"
    )
    adjust_bound: float = Field(
        2.0,
        gt=0,
        le=100,
        description="how far an adjustment may move a prediction: in log-odds, a regressor's in spreads of the recent "
        "labels (a normal distribution's standard deviation)",
    )
    adjust_memory: int = Field(
        100_000,
        ge=100,
        le=10_000_000,
        description="answered rows that an adjustment remembers while they wait for a label",
    )

    @field_validator("start_position")
    @classmethod
    def _start(cls, value: str) -> str:
        if value in ("earliest", "latest"):
            return value
        try:
            return parse_time(value).isoformat()
        except ValueError:
            raise ValueError(
                "must be 'earliest' or 'latest', or a time in ISO 8601 such as 2026-01-31T00:00:00Z"
            ) from None

    @field_validator("field")
    @classmethod
    def _paths(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for path in value.values():
            steps_of(path)
        return value

    @model_validator(mode="after")
    def _one_place_of_each(self) -> StreamSpec:
        for name, key in ((REQUEST_ID, "id_column"), (EVENT_TIME, "timestamp_column")):
            if name in self.field and getattr(self, key) is not None:
                raise ValueError(
                    f"give {FIELD_PREFIX}{name} or {key}, not both: each says where the {name} of a message is"
                )
        return self

    @field_validator("broker")
    @classmethod
    def _scheme(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"pulsar(\+ssl)?://[^/\s@]+/?", value):
            raise ValueError("must be a URL such as pulsar://host:6650 or pulsar+ssl://host:6651")
        return value

    @field_validator("broker_token_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        return checked_variable(value)

    @field_validator("broker_token_file", "broker_ca_file")
    @classmethod
    def _path(cls, value: str | None) -> str | None:
        return absolute_path(value)

    @model_validator(mode="after")
    def _security_fits_the_broker(self) -> StreamSpec:
        if self.broker_token_env is not None and self.broker_token_file is not None:
            raise ValueError("give broker_token_env or broker_token_file, not both: there is one token")
        given = [
            key
            for key in ("broker_token_env", "broker_token_file", "broker_ca_file")
            if getattr(self, key) is not None
        ]
        if given and self.broker is None:
            raise ValueError(
                f"{given[0]} needs broker= too: the one that is kept in the home has no security"
            )
        if self.broker_ca_file is not None and not str(self.broker).startswith("pulsar+ssl:"):
            raise ValueError(f"broker_ca_file needs broker=pulsar+ssl://host:6651, got broker={self.broker}")
        return self


class BatchSpec(CommonSpec):
    """Files in, answers out: by a schedule, by `flywheel batch run`, or for the rows of one predict call."""

    mode: Literal["batch"] = Field(
        "batch", description="files in, answers out: by schedule, on demand, for given rows"
    )
    input: str | None = Field(
        None,
        description="what a run scores: a Parquet, CSV or JSON Lines file, folder or glob, here or in a store (s3://...), "
        "or a Delta table",
    )
    query: str | None = Field(
        None,
        description="SQL whose result a run scores; input= is then SQLAlchemy's URL of the database, with ${NAME} for a "
        "password in an environment variable",
    )
    output: str | None = Field(
        None,
        description="folder, store URL (or delta: table) for answers; default batch/NAME/output in the home",
    )
    schedule: str | None = Field(
        None, description='when to run over new input: a cron line of five fields, such as "0 2 * * *"'
    )
    timezone: str = Field("UTC", description="time zone of the schedule, such as Europe/Berlin")
    watermark: str | None = Field(
        None,
        description="input column that only grows, numbers or times: a run takes the rows above its last value; without "
        "it a run takes the files that no run took before",
    )
    passthrough: Annotated[tuple[str, ...], BeforeValidator(_list)] = Field(
        ("*",), description="input columns to repeat in the output, comma-separated; * is all of them"
    )
    on_error: OnError = Field(
        "fail",
        description="a row or file that does not fit, or on which the model raises, fails the run, or is set aside in a "
        "file of rejects beside the answers (skip)",
    )
    chunk_rows: int = Field(65_536, ge=1, description="rows scored at once: bounds the memory")
    commit_rows: int = Field(
        1_048_576,
        ge=1,
        description="rows that become visible in the inference table (and a Delta output) at once",
    )
    threads: int = Field(0, ge=0, le=256, description="chunks scored at the same time; 0 is one per core")

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError("is not a time zone; give a name such as UTC or Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _schedule_needs_input(self) -> BatchSpec:
        if self.schedule is not None:
            from mlflow_flywheel.monitors.schedule import cron_trigger

            cron_trigger(self.schedule, self.timezone)
            if self.input is None:
                raise ValueError("schedule needs input=: there is nothing to score regularly")
        return self

    @model_validator(mode="after")
    def _query_needs_a_database(self) -> BatchSpec:
        if self.query is not None:
            if self.input is None:
                raise ValueError("query needs input=, SQLAlchemy's URL of the database that answers it")
            if self.schedule is not None and self.watermark is None:
                raise ValueError(
                    "a scheduled run would score all of query= every time; name a column that only grows with watermark=, "
                    "or leave out schedule="
                )
        return self

    @model_validator(mode="after")
    def _watermark_needs_input(self) -> BatchSpec:
        if self.watermark is not None and self.input is None:
            raise ValueError("watermark needs input=: it says what is new there")
        return self


Spec = WebSpec | StreamSpec | BatchSpec
SPECS: Mapping[str, type[WebSpec | StreamSpec | BatchSpec]] = {
    "web": WebSpec,
    "stream": StreamSpec,
    "batch": BatchSpec,
}
