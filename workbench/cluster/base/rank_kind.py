"""What ranks are made of: the framework that is imported before they start, and the Python that they run on."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core.frameworks import DEFAULT_FRAMEWORK, framework


@dataclass(frozen=True, kw_only=True)
class RankKind:
    """``preload`` is the dotted function that a warm process called; ``framework`` is "" where that is not a
    framework's own, so that ranks may train with any; ``python`` "" is the server's own interpreter."""

    framework: str
    preload: str
    python: str = ""

    @classmethod
    def asked(
        cls, now: RankKind | None, framework_name: str | None, python: str | None, preload: str | None
    ) -> RankKind:
        """From what a person asked for; what is None is that of the ranks that are up ``now``, else the default.

        ``framework_name``: what the ranks are to train with; it is imported before they start. ``python``: their
        interpreter, of an environment that has dist-workbench. ``preload``: a ``module:function`` to call in place of
        the framework's. ``ConfigError`` for a framework that cannot be used.
        """
        if python is None:
            python = now.python if now is not None else ""
        if preload is not None:
            return cls(framework="", preload=preload, python=python)
        if framework_name is None and now is not None:
            return cls(framework=now.framework, preload=now.preload, python=python)
        name = framework_name or DEFAULT_FRAMEWORK
        return cls(framework=name, preload=framework(name).preload, python=python)

    def trains(self, framework_name: str) -> bool:
        """Whether ranks of this kind can train with a framework."""
        return self.framework in ("", framework_name)
