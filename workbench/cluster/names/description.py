"""What is known about a variable of a rank."""

from __future__ import annotations

from dataclasses import dataclass

#: MIME type in which a rank publishes its answer, as JSON
ANSWER = "application/vnd.workbench.names+json"


@dataclass(frozen=True, kw_only=True)
class Description:
    """A variable of one rank.

    ``type``: the name of its class. ``shape``: of an array or tensor, such as ``(4, 8)``; of a container ``3 items``,
    of a module ``9 parameters``. ``dtype``, ``device``: of an array, a tensor, or the parameters of a module.
    ``bytes``: of the data, or None. ``value``: a number or a text, as text. ``fingerprint``: equal for equal values; ""
    when the value cannot be compared. Texts that do not apply are empty.
    """

    type: str
    shape: str = ""
    dtype: str = ""
    device: str = ""
    bytes: int | None = None
    value: str = ""
    fingerprint: str = ""
