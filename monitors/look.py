"""What a monitor looks at, and what a monitor is.

A monitor is one module: a class with a name and a `look`, and a line in `all.py`. It says something about one window
of one model version, and acts on nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from .reference import Reference
from .verdicts import Verdict
from .windows import Window

if TYPE_CHECKING:
    from mlflow_flywheel.pipelines.batch.waiting import InputState
    from mlflow_flywheel.pipelines.model import Scorer

    from .policy import PolicySpec


class Reader(Protocol):
    """Reads what champions answered in a window, whatever their version, with the labels known by the look's end.

    Without `columns` all of them come, in order of event time; chosen ones come in any order. `deployment` and
    `requests` (client request ids) keep the rows that are theirs.
    """

    def __call__(
        self,
        window: Window,
        *,
        deployment: str | None = None,
        requests: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table: ...


@dataclass(frozen=True)
class Runs:
    """How the runs of a batch deployment over its own input went, as of a moment.

    `succeeded` is when the newest success ended, `failure` why the newest run failed; None when it did not.
    """

    succeeded: datetime | None
    failure: str | None = None


@dataclass(frozen=True)
class Deployed:
    """A deployment that answers as champion of the model and logs what it answers.

    `mode` is web, stream or batch, `since` when it was made, `every` the longest time between two runs of its
    schedule, `runs` how these went. `inputs` looks at what it reads, as of a moment (raises FlywheelError when that
    cannot be done); None when it reads nothing.
    """

    name: str
    mode: str
    since: datetime | None = None
    every: timedelta | None = None
    inputs: Callable[[datetime], InputState] | None = None
    runs: Runs | None = None


@dataclass(frozen=True)
class Look:
    """One window of one model version.

    `rows` are what the version answered as champion in the window, with the labels that were known by its end, in
    order of event time: columns of the inference table, features as `feature.<name>`. What costs more is fetched when
    a monitor asks for it: other rows by `read`, the version itself by `load` (raises FlywheelError when it cannot be
    loaded). `deployment` is the one whose rows these are alone; None for those of all `deployments`.
    """

    model: str
    version: str
    window: Window
    rows: pa.Table
    reference: Reference | None
    policy: PolicySpec
    read: Reader
    load: Callable[[], Scorer]
    deployments: tuple[Deployed, ...] = ()
    deployment: str | None = None

    @property
    def as_of(self) -> datetime:
        """The moment that counts as now: everything that is looked at was known by then."""
        return self.window.end

    @cached_property
    def before(self) -> pa.Table:
        """What champions of any version answered in the window before; their labels are those known now."""
        return self.read(self.window.before(), deployment=self.deployment)

    def of(self, deployment: str) -> Look:
        """Return the same look at what one deployment answered; `read` still reaches the others' rows."""
        return replace(
            self,
            rows=self.rows.filter(pc.equal(self.rows["deployment"], deployment)),
            deployments=tuple(d for d in self.deployments if d.name == deployment),
            deployment=deployment,
        )


class Monitor(Protocol):
    """One question about a model.

    `series` are metrics of its verdict that are drawn over time for each deployment, from the deployment's own rows,
    each with the name of its series there. Without any, it is not asked about single deployments.
    """

    series: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The verdict's monitor: one word, known to the policy."""
        ...

    def look(self, look: Look) -> Verdict | None:
        """Answer about a window; None when it is no question for this model.

        Never raises for what the rows hold: too little of it is `unknown`.
        """
        ...
