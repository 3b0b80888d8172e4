"""What each plan of each framework can do, as a table made from what the frameworks declare.

The same declarations refuse a run before it starts (``plans.requirements.check_capabilities``), fill the chapter of
``docs/reference.md`` and choose the cases of the conformance tests.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from workbench.core.frameworks import Capability, Feature, Framework, Plugin, usable
from workbench.core.numbers import format_table, html_table

#: all that can be asked of a plan, in the order of the table's columns
ASKED: tuple[Feature | Capability, ...] = (*Feature, *Capability)


class Support(StrEnum):
    """Whether a plan can do something; the value is the sign in a table."""

    WORKS = "yes"
    REFUSED = "no"
    UNTRIED = "?"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Whether ``plugin`` of ``framework`` can do ``asked``; ``reason``: why it cannot, or why nobody knows."""

    framework: str
    plugin: str
    asked: Feature | Capability
    support: Support
    reason: str = ""


def entry(framework: Framework, plugin: Plugin, asked: Feature | Capability) -> Entry:
    """One place of the table."""
    refused = plugin.why_not(asked)
    untried = plugin.untried.get(asked, "") if isinstance(asked, Feature) else ""
    support = Support.REFUSED if refused else Support.UNTRIED if untried else Support.WORKS
    return Entry(framework=framework.name, plugin=plugin.name, asked=asked, support=support, reason=refused or untried)


@dataclass(frozen=True)
class CapabilityTable:
    """Every plan of the frameworks, and whether it can do each thing that can be asked. Shown as text and as HTML.

    ``entries``: in the order of the plans, and of ``ASKED`` within a plan. ``not_offered``: ways to train that no plan
    offers, as "framework name" -> why.
    """

    entries: tuple[Entry, ...]
    not_offered: Mapping[str, str] = field(default_factory=dict)

    def plans(self) -> list[str]:
        """The plans, as "framework plugin"."""
        return list(dict.fromkeys(f"{each.framework} {each.plugin}" for each in self.entries))

    def rows(self) -> list[tuple[str, ...]]:
        """What can be asked, and the sign for each plan."""
        signs: dict[Feature | Capability, list[str]] = {asked: [] for asked in ASKED}
        for each in self.entries:
            signs[each.asked].append(each.support.value)
        return [(asked.value, *found) for asked, found in signs.items()]

    def frameworks(self) -> list[str]:
        """The names of the frameworks."""
        return list(dict.fromkeys(each.framework for each in self.entries))

    def by_framework(self) -> list[tuple[str, ...]]:
        """The plugins of each framework, and with which of them each thing works that can be asked; things for which
        that is the same share a row."""
        plugins: dict[str, list[str]] = {}
        works: dict[Feature | Capability, dict[str, list[str]]] = {asked: {} for asked in ASKED}
        untried = {(each.framework, each.asked) for each in self.entries if each.support is Support.UNTRIED}
        for each in self.entries:
            plugins.setdefault(each.framework, [])
            if each.plugin not in plugins[each.framework]:
                plugins[each.framework].append(each.plugin)
            able = works[each.asked].setdefault(each.framework, [])
            if each.support is Support.WORKS:
                able.append(each.plugin)
        alike: dict[tuple[str, ...], list[str]] = {}
        for asked, found in works.items():
            cells = [
                "not tried yet" if (name, asked) in untried and not found[name] else _among(found[name], plugins[name])
                for name in plugins
            ]
            alike.setdefault(tuple(cells), []).append(asked.value)
        return [
            ("plugins", *(", ".join(names) for names in plugins.values())),
            *((", ".join(names), *cells) for cells, names in alike.items()),
        ]

    def reasons(self) -> list[str]:
        """Each reason for what is refused, untried or not offered, with the plans that it holds for, as sentences."""
        found: dict[tuple[str, str], list[str]] = {}
        for each in self.entries:
            if each.reason:
                found.setdefault((each.asked.value, each.reason), []).append(f"{each.framework} {each.plugin}")
        sentences = [f"{asked} with {', '.join(plans)}: {reason}" for (asked, reason), plans in found.items()]
        return sentences + [f"{plan} is not offered: {reason}" for plan, reason in self.not_offered.items()]

    def __repr__(self) -> str:
        return "\n".join([format_table(self.rows(), ("", *self.plans())), "", *self.reasons()])

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(reason)}</li>" for reason in self.reasons())
        return f"{html_table(self.rows(), ('', *self.plans()))}<ul>{notes}</ul>"


def _among(able: list[str], plugins: list[str]) -> str:
    """Which of the plugins of a framework can do something, in few words."""
    others = [name for name in plugins if name not in able]
    if not able or not others:
        return "none" if not able else "all"
    return ", ".join(able) if len(able) <= len(others) else f"all but {', '.join(others)}"


def capability_table(frameworks: Iterable[Framework] | None = None) -> CapabilityTable:
    """The table of ``frameworks`` (default: those that are installed and not broken)."""
    chosen = usable() if frameworks is None else list(frameworks)
    return CapabilityTable(
        tuple(entry(each, plugin, asked) for each in chosen for plugin in each.plugins for asked in ASKED),
        {f"{each.name} {name}": reason for each in chosen for name, reason in each.not_offered.items()},
    )
