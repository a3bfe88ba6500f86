"""A retraining by somebody's own code: which code, and how it is run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .config import Frozen

EnvironmentManager = Literal["local", "virtualenv", "uv"]


class ProjectSpec(Frozen):
    """Whose code trains instead of ours, and how it is run: enough to run the same again.

    `version` is a git commit or branch, the commit once it was fetched; `code_hash` is of what was fetched, empty when
    nobody can say.
    """

    uri: str = Field(description="MLflow project (a folder, a git or zip URI) or module:function")
    entry_point: str = "retrain"
    version: str = ""
    environment: EnvironmentManager = "local"
    parameters: dict[str, str] = Field(default_factory=dict)
    code_hash: str = ""

    @property
    def is_function(self) -> bool:
        """Whether this is a function to import, and no MLflow project."""
        return is_function(self.uri)


def is_function(text: str) -> bool:
    """Tell `module:function` from a project's URI."""
    module, _, name = text.partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module.split("."))
