"""The kind of ranks: the framework that is imported before they start, and their Python interpreter."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core.environments import place, python_for, python_in
from workbench.core.frameworks import DEFAULT_FRAMEWORK, framework


@dataclass(frozen=True, kw_only=True)
class RankKind:
    """What distinguishes ranks that start from different warm processes.

    ``framework``: the framework that was imported; "" when the user passed ``preload``, so that any framework is
    allowed. ``preload``: the ``module:function`` that the warm process called. ``python``: the interpreter ("": that of
    the server).
    """

    framework: str
    preload: str
    python: str = ""

    @classmethod
    def resolve(
        cls, current: RankKind | None, framework_name: str | None, python: str | None, preload: str | None
    ) -> RankKind:
        """Returns the kind of ranks that the user requested.

        Arguments that are None take their value from ``current``, the kind of the ranks that are up, or the default;
        the interpreter of a framework's own environment is for ranks of that framework alone.
        ``framework_name``: the framework to train with, which is imported before the ranks start. ``python``: the
        interpreter, whose environment must contain dist-workbench. ``preload``: a ``module:function`` to call in place
        of the framework's. Raises ``ConfigError`` when the framework is unknown or not installed.
        """
        if python is None:
            is_left = framework_name is not None and current is not None and current.runs_in_own_environment
            python = current.python if current is not None and not is_left else ""
        if preload is not None:
            return cls(framework="", preload=preload, python=python)
        if framework_name is None and current is not None:
            return cls(framework=current.framework, preload=current.preload, python=python)
        name = framework_name or DEFAULT_FRAMEWORK
        found = framework(name)
        return cls(framework=name, preload=found.preload, python=python or python_for(found))

    @property
    def joins_once(self) -> bool:
        """Returns whether a rank can meet the others only once, so that all are started anew where one is."""
        return bool(self.framework) and framework(self.framework).joins_once

    @property
    def runs_in_own_environment(self) -> bool:
        """Returns whether the interpreter is that of the environment that was made for the framework."""
        return bool(self.framework) and self.python == str(python_in(place(framework(self.framework))))

    def can_train(self, framework_name: str) -> bool:
        """Returns whether ranks of this kind can train with a framework."""
        return self.framework in ("", framework_name)
