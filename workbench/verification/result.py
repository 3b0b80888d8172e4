"""``Verification``: whether a plan trains the same as its reference, since when not, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from workbench.errors import RunDirectoryError, SchemaError

VERIFICATION_FILE = "verification.json"
VERSION = 1
SAME, DIFFERS, UNDECIDED = "same", "differs", "undecided"
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A value that differs by more than its tolerance. ``what``: "loss", "gradient" or "weight" (of ``name``).
    ``difference`` is relative, for a loss absolute."""

    step: int
    what: str
    name: str
    difference: float
    tolerance: float

    def __str__(self) -> str:
        of = f"{self.what} of {self.name}" if self.what == "gradient" else f"{self.what} {self.name}".strip()
        return f"{of}: {self.difference:.2g} (tolerance {self.tolerance:.2g})"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What ``%dist_verify`` found. ``print`` it, or show it in a notebook.

    ``verdict``: "same", "differs", or "undecided" where the model draws random numbers, so that nothing can be
    compared. ``sentence``: the verdict in words. ``plan`` and ``reference`` in words, ``steps`` compared.
    ``losses`` and ``reference_losses`` by step, ``loss_tolerances`` (absolute).
    ``layers``: names of modules that own parameters, in the model's order. ``gradients`` and ``weights``: by layer, the
    relative difference at each step, the largest of its tensors (``inf``: not finite); ``gradient_tolerances`` of the
    tensor that is farthest from its tolerance. How they are defined, and where the tolerances come from, is said in
    ``workbench.verification.compare``.
    ``findings``: everything that differs at the first step that does: the loss, then gradients and weights, the largest
    difference first. ``causes``: likely causes, in sentences. ``notes``: what else is to be known. ``basis``: what the
    tolerance rests on.
    """

    verdict: str
    sentence: str
    plan: str
    reference: str
    steps: int
    losses: Sequence[float]
    reference_losses: Sequence[float]
    loss_tolerances: Sequence[float]
    layers: Sequence[str]
    gradients: Sequence[Sequence[float]]
    gradient_tolerances: Sequence[Sequence[float]]
    weights: Sequence[Sequence[float]]
    findings: Sequence[Finding]
    causes: Sequence[str]
    notes: Sequence[str]
    basis: str

    @property
    def same(self) -> bool:
        """Whether the plan trains the same as the reference."""
        return self.verdict == SAME

    @property
    def first(self) -> Finding | None:
        """The first value that differs: the loss, else the gradient or the weight with the largest difference; None
        where none does."""
        return self.findings[0] if self.findings else None

    @property
    def first_step(self) -> int | None:
        """The first step that differs (0: the weights before the first); None where none does."""
        return self.findings[0].step if self.findings else None

    def ranked(self, what: str) -> list[Finding]:
        """The findings about "loss", "gradient" or "weight", the largest difference first."""
        return [finding for finding in self.findings if finding.what == what]

    def __str__(self) -> str:
        lines = [self.sentence]
        lines += [f"  cause: {cause}" for cause in self.causes]
        for what in ("gradient", "weight"):
            ranked = self.ranked(what)
            lines += [f"  {finding}" for finding in ranked[:_SHOWN]]
            if len(ranked) > _SHOWN:
                lines.append(f"  and {len(ranked) - _SHOWN} more {what}s")
        lines += ["", f"{'step':>6} {'loss':>12} {'reference':>12} {'difference':>11} {'tolerance':>10}"]
        lines += [
            f"{step:>6} {one:>12.6g} {other:>12.6g} {abs(one - other):>11.2g} {allowed:>10.2g}"
            for step, (one, other, allowed) in enumerate(
                zip(self.losses, self.reference_losses, self.loss_tolerances, strict=True), start=1
            )
        ]
        return "\n".join([*lines, "", f"tolerance: {self.basis}", *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from workbench.verification.html import as_html

        return as_html(self)

    def write(self, run: Path) -> Path:
        """Keep it in a run directory, as ``verification.json``; returns the file."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        words = {name: values.pop(name) for name in ("verdict", "sentence", "plan", "reference", "steps", "basis")}
        words |= {name: "; ".join(values[name]) for name in ("causes", "notes") if values[name]}
        figures = {**values, "findings": [asdict(finding) for finding in self.findings]}
        file = run / VERIFICATION_FILE
        file.write_text(json.dumps({"version": VERSION, **words, "figures": figures}), encoding="utf-8")
        return file

    @classmethod
    def read(cls, run: Path) -> Verification:
        """The verification kept in a run directory. ``RunDirectoryError`` where there is none, ``SchemaError`` when a
        newer version wrote it."""
        file = run / VERIFICATION_FILE
        if not file.is_file():
            raise RunDirectoryError(f"{run} has not been verified: run.verify(), or %dist_verify")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found.pop("version") > VERSION:
            raise SchemaError(f"{file} was written by a newer version: update dist-workbench")
        figures = found.pop("figures")
        figures["findings"] = [Finding(**finding) for finding in figures["findings"]]
        return cls(**{**found, **figures})
