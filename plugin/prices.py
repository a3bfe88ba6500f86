"""What a machine costs: prices by which CPU time and memory become money."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_flywheel.pipelines.errors import BadInput

CPU_VARIABLE, MEMORY_VARIABLE = "FLYWHEEL_PRICE_CPU_HOUR", "FLYWHEEL_PRICE_GB_HOUR"
# Dollars for an hour of a vCPU and of a gigabyte: AWS Fargate's list prices for Linux on x86 in us-east-1, rounded.
CPU_HOUR, GB_HOUR = 0.04, 0.0045
_HOUR = 3600.0


@dataclass(frozen=True)
class Prices:
    """Money, in whatever currency the prices are, for an hour of one core and of one gigabyte of memory."""

    cpu_hour: float = CPU_HOUR
    gb_hour: float = GB_HOUR

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Prices:
        """Read the prices of this machine. Raises BadInput for one that is no price."""
        return cls(_price(environment, CPU_VARIABLE, CPU_HOUR), _price(environment, MEMORY_VARIABLE, GB_HOUR))

    def cost(self, cpu_seconds: float, gb_seconds: float = 0.0) -> float:
        """Return what so much work costs."""
        return (cpu_seconds * self.cpu_hour + gb_seconds * self.gb_hour) / _HOUR


def money(amount: float) -> str:
    """Return an amount as people read it: cents of what is dear, three figures of what is cheap."""
    return f"{amount:.2f}" if amount >= 1 else f"{amount:.3g}"


def _price(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise BadInput(f"{name}={text!r} is no price of an hour; give a number such as {default}")
    return price
