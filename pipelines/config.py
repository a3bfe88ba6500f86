"""What a worker is told: small JSON files that the control plane writes and the data plane reads.

A worker can be started by hand with such a file alone, so these models are also the data plane's public interface.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from .errors import BadInput, NotFound

Durability = Literal["process", "power"]
TrialMode = Literal["shadow", "canary"]
StartPosition = Literal["earliest", "latest"] | AwareDatetime
OnError = Literal["fail", "skip"]
AdjustKind = Literal["bias", "recalibrate", "partial_fit"]
Adjust = Literal["off", "bias", "recalibrate", "partial_fit"]
ClassBalance = Literal["none", "weights", "downsample"]
RowsKept = Literal["newest", "random"]
C = TypeVar("C", bound="Frozen")


class Frozen(BaseModel):
    """Base of the configuration models: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def save(self, path: Path) -> None:
        """Write as JSON, atomically: a reader sees the old or the new file, never half of one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(self.model_dump_json(indent=2))
        temporary.replace(path)


class ModelRef(Frozen):
    """One model version whose files are already on this machine."""

    name: str = Field(description="registered model name: the inference table's name")
    version: str = Field(
        description='registered version, such as "3"; empty for a model outside the registry'
    )
    model_id: str | None = None
    path: str = Field(description="local folder that holds the MLmodel file")


class WorkerConfig(Frozen):
    """What web and stream workers have in common."""

    deployment: str
    model: ModelRef
    variant: str = "champion"
    spool: str = Field(description="root folder of the spool")
    durability: Durability = "process"
    log: bool = True
    id_column: str | None = Field(None, description="input column taken as client_request_id")
    timestamp_column: str | None = Field(None, description="input column taken as event_time")
    status_file: str = Field(description="where the master process reports its generations")
    log_exclude: tuple[str, ...] = Field((), description="features that are null in the inference table")
    log_sample: float = Field(1.0, gt=0, le=1, description="share of the rows that are logged")


class ChallengerConfig(Frozen):
    """A second version of a deployment's model, tried beside the first."""

    model: ModelRef
    mode: TrialMode = "shadow"
    traffic_percentage: float = Field(
        10.0, ge=0, le=100, description="share of callers that a canary answers"
    )


class WebConfig(WorkerConfig):
    """One web deployment."""

    host: str = "127.0.0.1"
    port: int = Field(ge=0, le=65535)
    workers: int = Field(1, ge=1, le=64)
    threads: int = Field(8, ge=1, le=256, description="threads that answer requests, per worker")
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1024)
    max_rows: int = Field(10_000, ge=1)
    max_queue: int = Field(256, ge=1, description="requests waiting beyond this many get 429")
    max_batch_size: int = Field(256, ge=1, description="most rows of different requests scored together")
    batch_wait_ms: float = Field(0.0, ge=0, le=1000)
    timeout_seconds: float = Field(60.0, gt=0, le=3600, description="a later answer is a 504")
    auth_token_file: str | None = Field(None, description="file with the bearer token that callers must send")
    insecure: bool = Field(False, description="a host beyond loopback is fine without a token")
    tls_cert: str | None = Field(None, description="PEM certificate; with tls_key the service speaks https")
    tls_key: str | None = None
    tls_cert_sha256: str | None = Field(
        None, description="of the certificate: a renewed one makes another generation of workers"
    )
    cors_origins: tuple[str, ...] = ()
    access_log: bool = Field(False, description="write a line of JSON for each request to standard output")
    challenger: ChallengerConfig | None = Field(None, description="version that is tried beside the model")

    @property
    def trial(self) -> ChallengerConfig | None:
        """The challenger, unless it is the version that serves anyway and so has nothing to prove."""
        challenger = self.challenger
        if challenger is None or (challenger.model.name, challenger.model.version) == (
            self.model.name,
            self.model.version,
        ):
            return None
        return challenger


class StreamConfig(WorkerConfig):
    """One stream deployment."""

    broker: str = Field(description="service URL of the broker")
    embedded: bool = Field(
        False, description="the broker is the embedded one, pulsar-lite, and needs its care"
    )
    input_topic: str
    output_topic: str
    feedback_topic: str | None = None
    dead_letter_topic: str
    subscription: str
    start_position: StartPosition = Field(
        "earliest",
        description="where a new subscription starts; what was published before a time is passed over",
    )
    batch_max: int = Field(1000, ge=1, le=100_000)
    batch_wait_ms: int = Field(5, ge=1, le=10_000)
    max_message_bytes: int = Field(1024 * 1024, ge=64)
    workers: int = Field(1, ge=1, le=64)
    ordering: Literal["none", "key"] = Field("none", description="key: the messages of a key, in their order")
    broker_store_file: str | None = Field(
        None, description="file that names the store of a broker that the home keeps"
    )
    broker_token_file: str | None = Field(None, description="file with the token that the broker wants")
    broker_ca_file: str | None = Field(None, description="PEM authorities to trust; the system's without")
    input_format: Literal["json", "avro"] = "json"
    fields: dict[str, str] = Field(
        {}, description="path in the message by feature, client_request_id, event_time"
    )
    properties: tuple[str, ...] = Field(
        ("*",), description="message properties kept on the answer; * means all"
    )
    adjust: Adjust = Field("off", description="how predictions are adjusted to the labels that come")
    adjust_window: int = Field(500, ge=50, le=10_000, description="labels that an adjustment is fitted to")
    adjust_bound: float = Field(2.0, gt=0, le=100, description="how far a prediction may be moved")
    adjust_memory: int = Field(
        100_000, ge=100, le=10_000_000, description="answered rows that wait for their labels"
    )


class BatchConfig(Frozen):
    """One batch job: it may be killed and started again with the same file until it is done."""

    deployment: str
    model: ModelRef
    variant: str = "champion"
    tables: str = Field(description="root of the inference tables: a folder or a URL that delta-rs writes")
    state_dir: str = Field(description="local folder for progress and for the list of inputs already scored")
    job_id: str = Field(description="names the run; ids of predictions and Delta transactions derive from it")
    input: str
    query: str | None = Field(
        None, description="SQL whose result is the input; `input` is then SQLAlchemy's URL"
    )
    output: str
    id_column: str | None = None
    timestamp_column: str | None = None
    passthrough: tuple[str, ...] = Field(("*",), description="input columns kept in the output; * means all")
    log: bool = True
    log_exclude: tuple[str, ...] = Field((), description="features that are null in the inference table")
    log_sample: float = Field(1.0, gt=0, le=1, description="share of the rows that are logged")
    on_error: OnError = "fail"
    chunk_rows: int = Field(65_536, ge=1)
    commit_rows: int = Field(1_048_576, ge=1, description="rows that become visible in a table at once")
    threads: int = Field(0, ge=0, le=256, description="chunks scored at a time; 0 is one per core")
    incremental: bool = Field(
        False,
        description="score only what no incremental job with this state_dir has scored before: other files, or rows "
        "above the watermark",
    )
    watermark: str | None = Field(
        None, description="column that only grows: an incremental job takes the rows above its last value"
    )
    start: AwareDatetime | None = Field(
        None, description="take only rows whose timestamp_column is not before this"
    )
    end: AwareDatetime | None = Field(
        None, description="take only rows whose timestamp_column is before this"
    )


def load_config(kind: type[C], path: Path) -> C:
    """Read and validate a configuration file.

    Raises NotFound when it is missing and BadInput, with the path and every complaint, when it does not fit.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(
            f"configuration file {str(path)!r} does not exist; give its path with --config"
        ) from None
    except ValidationError as error:
        complaints = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadInput(f"configuration file {str(path)!r} is not valid: {complaints}") from None


def digest_of(path: Path) -> str:
    """Return the sha256 of a configuration file: the identity of a generation of workers."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
