"""What the MLflow client and the command line do to deployments: create, update, delete, look, ask.

A change is all or nothing. Everything that can be known is checked before anything is made; what fails later is
cleaned up, and the error says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError

from .context import Context
from .home import Home
from .model_files import FetchedModel, fetch_model
from .modes import Answers, mode_operations
from .record_types import DeploymentRecord
from .run_records import FAILED
from .spec import LOOP_PREFIX, Spec
from .spec_reading import check_name, parse_loop, parse_spec
from .trials import challenger_in_force, with_challenger

if TYPE_CHECKING:
    import pandas as pd

# A little more than a master gives its workers to load the model: its own words are better than ours.
READY_SECONDS = 330.0
ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class Operations:
    """The operations on one home; `say` is told what is being done, for people who wait."""

    context: Context
    say: Callable[[str], None] = lambda text: None

    @classmethod
    def open(cls, home: Home, say: Callable[[str], None] = lambda text: None) -> Operations:
        """Open a home, making it when it is new."""
        return cls(Context.open(home), say)

    def create(
        self, name: str, model_uri: str, config: Mapping[str, Any] | None = None, flavor: str | None = None
    ) -> DeploymentRecord:
        """Deploy a model and return when a prediction can be made.

        Raises BadInput, NotFound or AlreadyExists before anything is made; ModelError or Unavailable, after cleaning
        up, when it cannot serve.
        """
        raw = texts(config)
        spec, loop = parse_spec(raw), parse_loop(raw)
        records, context = self.context.records, self.context
        check_name(name)
        _refuse_known(context, name)
        mode = mode_operations(spec.mode)
        mode.check(context, name, spec)
        self.say(f"fetching {model_uri}")
        model = with_challenger(context, spec, fetch_model(context, model_uri))
        chosen_flavor = model.flavor(flavor)
        model.check_table(context)
        was_up = context.runner.running()
        with context.changing(name):
            records.add_deployment(
                name,
                model_uri=model_uri,
                model_name=model.ref.name,
                mode=spec.mode,
                config=_kept(raw, spec),
                flavor=chosen_flavor,
                version=model.ref.version,
                model_id=model.ref.model_id,
            )
            try:
                self.say(f"starting {name}: it loads the model and scores its input example")
                url = mode.start(context, name, spec, model, READY_SECONDS)
                model.ensure_table(context)
                context.ensure_daemon()
                self._set_policy(model.ref.name, loop)
                return records.update_deployment(name, status="ready", url=url)
            except BaseException:
                mode.stop(context, name)
                records.delete_deployment(name, run_status=FAILED)
                if not was_up and not context.runner.status():
                    context.runner.down()
                raise

    def update(
        self,
        name: str,
        model_uri: str | None = None,
        config: Mapping[str, Any] | None = None,
        flavor: str | None = None,
    ) -> DeploymentRecord:
        """Change the model, the keys or both, without failing a request.

        Keys that are not given keep their values; an empty value means the default. On an error the deployment goes
        on as it was, and the error says why.
        """
        self.context.records.deployment(name)  # before a lock is made for a name that is none
        with self.context.changing(name):
            record = self.context.records.deployment(name)
            raw = texts(config)
            merged = {**record.config, **raw}
            if merged.get("mode") != record.mode:
                raise BadInput(
                    f"deployment {name!r} is a {record.mode} deployment and stays one; create another one for mode "
                    f"{merged.get('mode')!r}"
                )
            spec, loop = parse_spec(merged), parse_loop(raw)
            self.say(f"fetching {model_uri or record.model_uri}")
            model = fetch_model(self.context, model_uri or versioned_uri(record))
            stays = spec.mode == "web" and "challenger" not in raw and model.ref.name == record.model_name
            present = challenger_in_force(self.context, name) if stays else None
            model = with_challenger(self.context, spec, model, present)
            chosen = model.flavor(flavor) if flavor or model_uri else record.flavor
            mode = mode_operations(spec.mode)
            mode.check(self.context, name, spec)
            self.say(
                f"preparing version {model.ref.version or model.ref.name}; the old one serves until it is ready"
            )
            changed = self._swap(record, spec, model, model_uri=model_uri or record.model_uri, flavor=chosen)
            model.ensure_table(self.context)
            self._set_policy(model.ref.name, loop)
            self.context.ensure_daemon()
            return (
                self.context.records.update_deployment(name, config=_kept(merged, spec)) if raw else changed
            )

    def roll_over(self, name: str, version: str) -> DeploymentRecord:
        """Serve another version of the same registered model; the model URI that is followed stays.

        A challenger goes along if it can; if not, that stops nobody, and the record says that it is tried no more.
        """
        with self.context.changing(name):
            record = self.context.records.deployment(name)
            if record.version == version:
                return record
            spec = parse_spec(record.config)
            model = fetch_model(self.context, f"models:/{record.model_name}/{version}")
            challenger = challenger_in_force(self.context, name) if spec.mode == "web" else None
            if challenger is None:
                return self._swap(record, spec, model)
            try:
                return self._swap(record, spec, with_challenger(self.context, spec, model, challenger))
            except FlywheelError as error:
                why = (
                    f"challenger version {challenger} is not tried beside version {version}: {error.message}"
                )
                return self._swap(record, spec, model, message=why)

    def try_beside(self, name: str, challenger: str) -> DeploymentRecord:
        """Try another version of the same model beside the one that serves."""
        with self.context.changing(name):
            record = self.context.records.deployment(name)
            spec = parse_spec(record.config)
            model = fetch_model(self.context, versioned_uri(record))
            try:
                tried = with_challenger(self.context, spec, model, challenger)
            except FlywheelError as error:
                self._stays(record, error)
                raise
            record = self._swap(record, spec, tried)
            tried.ensure_table(self.context)
            return record

    def delete(self, name: str) -> None:
        """Stop a deployment and remove its record and files; its rows in the inference table stay."""
        self.context.records.deployment(name)
        with self.context.changing(name):
            record = self.context.records.update_deployment(name, status="deleting")
            mode_operations(record.mode).stop(self.context, name, parse_spec(record.config))
            self.context.records.delete_deployment(name)

    def predict(self, name: str, rows: pd.DataFrame, timeout: float = ANSWER_SECONDS) -> Answers:
        """Score rows by the deployment, in its own way: a request, messages, or a job."""
        record = self.context.records.deployment(name)
        if rows.empty:
            raise BadInput(f"there are no rows to predict by deployment {name!r}")
        if record.mode == "batch":
            self.context.ensure_daemon()
        mode = mode_operations(record.mode)
        return mode.predict(self.context, record, parse_spec(record.config), rows, timeout)

    def _swap(
        self, record: DeploymentRecord, spec: Spec, model: FetchedModel, message: str = "", **fields: Any
    ) -> DeploymentRecord:
        records = self.context.records
        try:
            model.check_table(self.context)
            url = mode_operations(spec.mode).swap(self.context, record, spec, model, READY_SECONDS)
        except FlywheelError as error:
            self._stays(record, error)
            raise type(error)(
                f"{error.message}\ndeployment {record.name!r} goes on with version {record.version or record.model_uri}"
            ) from error
        if url != record.url:
            message = (
                message or f"restarted to be at {url} instead of {record.url}; it answered nothing meanwhile"
            )
        return records.update_deployment(
            record.name,
            url=url,
            status="ready",
            model_name=model.ref.name,
            version=model.ref.version,
            model_id=model.ref.model_id,
            message=message,
            **fields,
        )

    def _stays(self, record: DeploymentRecord, error: FlywheelError) -> None:
        self.context.records.update_deployment(record.name, message=f"stayed as it was: {error.message}")

    def _set_policy(self, model_name: str, settings: Mapping[str, str]) -> None:
        """Change the settings that a deployment brings along; the first policy of a model is no change of one."""
        if settings:
            from mlflow_flywheel.monitors.policy import PolicySpec

            from .policy_changes import change_policy

            home, records = self.context.home, self.context.records
            present = records.policy(model_name)
            policy = PolicySpec.parse(present).changed(settings)
            if present:
                change_policy(home, records, model_name, policy, "a deployment")
            else:
                records.set_policy(model_name, policy.model_dump(mode="json"))


def versioned_uri(record: DeploymentRecord) -> str:
    """Return the URI of the very version that a deployment serves."""
    return f"models:/{record.model_name}/{record.version}" if record.version else record.model_uri


def texts(config: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the keys as the command line would give them: lists comma-separated, None as unset."""
    texts = {}
    for key, value in (config or {}).items():
        joined = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        texts[str(key)] = "" if joined is None else str(joined)
    return texts


def _refuse_known(context: Context, name: str) -> None:
    from mlflow_flywheel.pipelines.errors import AlreadyExists

    if any(record.name == name for record in context.records.deployments()):
        raise AlreadyExists(
            f"deployment {name!r} exists already; update it, delete it first, or choose another name"
        )


def _kept(raw: Mapping[str, str], spec: Spec) -> dict[str, str]:
    """Return the keys to remember: those that were set, with paths that mean the same in every folder."""
    kept = {key: value for key, value in raw.items() if value != "" and not key.startswith(LOOP_PREFIX)}
    return kept | mode_operations(spec.mode).absolute_paths(spec)
