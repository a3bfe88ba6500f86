"""YAML, in and out: the only import of PyYAML."""

from __future__ import annotations

from typing import Any

import yaml

_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotYaml(ValueError):
    """Text that is no YAML, or that gives a key twice where it may stand once."""


def read_yaml(text: str | bytes, *, strict: bool = False) -> Any:
    """Return what a text says; raises NotYaml. A `strict` reader refuses a key that stands twice."""
    try:
        return yaml.load(text, _Strict if strict else _FAST)
    except yaml.YAMLError as error:
        raise NotYaml(str(error)) from None


def write_yaml(value: Any, width: int = 80) -> str:
    """Return plain values as YAML."""
    return str(yaml.safe_dump(value, allow_unicode=True, width=width)).rstrip()


class _Strict(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without what silently goes wrong: of a key that stands twice, one value would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; raises YAMLError for a key that stands twice."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made
