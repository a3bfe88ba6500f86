"""The tables of how many answers each version gave and failed to give, by ten minutes."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from .record_rows import Row


class AnswerRow(Row):
    """What one version did in one deployment in one slot. A deployment that was made anew has rows of its own."""

    __tablename__ = "flywheel_answers"

    deployment: Mapped[str] = mapped_column(primary_key=True)
    deployed: Mapped[datetime] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[datetime] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(index=True)
    answered: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)


class AnsweredRow(Row):
    """What one version did in one deployment: the sum of its slots, also of those that are forgotten."""

    __tablename__ = "flywheel_answered"

    deployment: Mapped[str] = mapped_column(primary_key=True)
    deployed: Mapped[datetime] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    answered: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)


class CounterRow(Row):
    """What a counter said last, so that the next daemon counts on from there."""

    __tablename__ = "flywheel_answer_counters"

    source: Mapped[str] = mapped_column(primary_key=True)
    incarnation: Mapped[str]
    answered: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    read_at: Mapped[datetime]
