"""The tables of what processes used: kept by ten minutes, so that an hour, a day or a chart can be made of them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from .record_rows import Row


class UsageRow(Row):
    """What one process used in one slot. A deployment that was made anew under an old name has rows of its own."""

    __tablename__ = "flywheel_usage"

    process: Mapped[str] = mapped_column(primary_key=True)
    deployed: Mapped[datetime] = mapped_column(primary_key=True)
    slot: Mapped[datetime] = mapped_column(primary_key=True)
    cpu_seconds: Mapped[float]
    gb_seconds: Mapped[float]
    up_seconds: Mapped[float]


class MeterRow(Row):
    """What was read of a process last, so that the next daemon counts on from there."""

    __tablename__ = "flywheel_meters"

    process: Mapped[str] = mapped_column(primary_key=True)
    incarnation: Mapped[str]
    read_at: Mapped[datetime]
    cpu_seconds: Mapped[float]


class UsedRow(Row):
    """What one process used since it was deployed: the sum of its slots, also of those that are forgotten."""

    __tablename__ = "flywheel_used"

    process: Mapped[str] = mapped_column(primary_key=True)
    deployed: Mapped[datetime] = mapped_column(primary_key=True)
    cpu_seconds: Mapped[float]
    gb_seconds: Mapped[float]
    up_seconds: Mapped[float]
