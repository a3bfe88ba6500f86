"""Recurring work, remembered in the home's database: the one import of APScheduler.

A job only says that it is time: its function puts a task in the queue. Functions are named by text, so that they can
be kept in a database and so that this room need not know who owns them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mlflow_flywheel.pipelines.errors import BadInput

_TABLE = "schedule"
# A daemon that was down for a night runs what it missed once when it is back; older misses are not worth it.
_GRACE_SECONDS = 24 * 3600
_BUSY_SECONDS = 30
# Enough for the nights of two weeks, or for the months of a year.
_NEXT_TIMES = 15


@dataclass(frozen=True)
class Job:
    """Something to do again and again: `target` is "package.module:function", called with `arguments` (texts).

    `cron` has five fields, in the time zone.
    """

    id: str
    cron: str
    target: str
    arguments: tuple[str, ...] = ()
    timezone: str = "UTC"


class Schedule:
    """The jobs of one database, run in threads of this process while it is started. One process at a time may be."""

    def __init__(self, database_url: str) -> None:
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
        from apscheduler.schedulers.background import BackgroundScheduler

        busy = {"timeout": _BUSY_SECONDS} if database_url.startswith("sqlite") else {}
        store = SQLAlchemyJobStore(database_url, tablename=_TABLE, engine_options={"connect_args": busy})
        self._scheduler: Any = BackgroundScheduler(
            jobstores={"default": store},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": _GRACE_SECONDS},
            timezone=ZoneInfo("UTC"),
        )

    def start(self) -> None:
        """Begin to run jobs, first those whose time passed while nothing ran: once each."""
        self._scheduler.start()

    def stop(self) -> None:
        """Stop running jobs; what is remembered stays."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def sync(self, jobs: Iterable[Job]) -> None:
        """Make the remembered jobs these ones: add what is new, change what changed, remove the rest.

        A job that stays as it is keeps its next time, so that a missed run is not forgotten. A job with a cron line or
        time zone that cannot be read stops no other; raises BadInput for the first of them at the end.
        """
        wanted = {job.id: job for job in jobs}
        present = {job.id: job for job in self._scheduler.get_jobs()}
        for job_id in present.keys() - wanted.keys():
            self._scheduler.remove_job(job_id)
        refused = None
        for job in wanted.values():
            try:
                if job.id not in present or self._differs(present[job.id], job):
                    self._put(job)
            except BadInput as error:
                refused = refused or error
        if refused is not None:
            raise refused

    def next_times(self) -> dict[str, datetime]:
        """Return when each job runs next."""
        return {
            job.id: job.next_run_time for job in self._scheduler.get_jobs() if job.next_run_time is not None
        }

    def _put(self, job: Job) -> None:
        self._scheduler.add_job(
            job.target,
            cron_trigger(job.cron, job.timezone),
            args=job.arguments,
            id=job.id,
            name=f"{job.cron} {job.timezone}",
            replace_existing=True,
        )

    def _differs(self, present: Any, wanted: Job) -> bool:
        have = (present.name, present.func_ref, tuple(present.args))
        return bool(have != (f"{wanted.cron} {wanted.timezone}", wanted.target, wanted.arguments))


def longest_gap(cron: str, timezone: str, after: datetime) -> timedelta | None:
    """Return the longest time between two of a schedule's next times; None when there are not two.

    Raises BadInput as `cron_trigger`.
    """
    trigger, times = cron_trigger(cron, timezone), [after]
    for _ in range(_NEXT_TIMES):
        found = trigger.get_next_fire_time(times[-1], times[-1])
        if found is None:
            break
        times.append(found)
    return max((later - earlier for earlier, later in pairwise(times[1:])), default=None)


_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def cron_trigger(cron: str, timezone: str = "UTC") -> Any:
    """Return the trigger of a cron line of five fields; raises BadInput that names the line or the zone."""
    from apscheduler.triggers.cron import CronTrigger

    try:
        return CronTrigger.from_crontab(_with_weekday_names(cron), ZoneInfo(timezone))
    except (ZoneInfoNotFoundError, ValueError) as error:
        what = f"time zone {timezone!r}" if isinstance(error, ZoneInfoNotFoundError) else f"schedule {cron!r}"
        raise BadInput(
            f'{what} cannot be read: {error}; write a cron line of five fields, such as "0 3 * * *", and a time zone '
            'such as "Europe/Berlin"'
        ) from None


def _with_weekday_names(cron: str) -> str:
    """Replace the numbers of the fifth field by names: cron counts from Sunday, APScheduler from Monday."""
    *others, weekdays = cron.split()
    return " ".join([*others, ",".join(_weekday_names(part) for part in weekdays.split(","))])


def _weekday_names(part: str) -> str:
    found = re.fullmatch(r"([0-7])(?:-([0-7]))?(?:/([1-7]))?", part)
    if found is None:
        return part
    first, last = int(found[1]), int(found[2] or (6 if found[3] else found[1]))
    if first > last:
        raise ValueError(f"weekdays {part} run backwards")
    return ",".join(_WEEKDAYS[day % 7] for day in range(first, last + 1, int(found[3] or 1)))
