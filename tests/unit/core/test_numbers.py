"""Numbers and times are written the same by Python, by the tooltips of figures and by the panel's script."""

from __future__ import annotations

import json
import math
import re
import subprocess

import pytest
from playwright._impl._driver import compute_driver_executable

from widgets.page.bundle import STATIC
from workbench.core import numbers
from workbench.plots.browser_numbers import FUNCTIONS

#: the script engine that playwright brings
NODE = str(compute_driver_executable()[0])
NUMBERS = {
    3e-4: "3e-4", 0.0: "0", 0.5: "0.5", 1493.34: "1,493", 4.26321: "4.263", 12.0: "12", 0.00123456: "0.001235",
    -2.5e-7: "-2.5e-7", 123456.0: "123,456", 999.96: "1,000", 1e16: "1e16", 0.1 + 0.2: "0.3", 100.0: "100",
    9.9999e-4: "1e-3",
}  # fmt: skip
TIMES = {
    0.05: "0.05 ms", 14.93: "14.9 ms", 149.3: "149 ms", 999.6: "1 s", 1493.3: "1.49 s", 14000.0: "14 s",
    75000.0: "1 min 15 s", 3725000.0: "1 h 2 min", 59999.0: "1 min 0 s",
}  # fmt: skip
BYTES = {0.0: "0 B", 100.0: "100 B", 20000.0: "20 kB", 1.5e6: "1.5 MB", 999999.0: "1 MB", 2e18: "2,000 PB"}


def test_python() -> None:
    assert {value: numbers.number(value) for value in NUMBERS} == NUMBERS
    assert {value: numbers.milliseconds(value) for value in TIMES} == TIMES
    assert {value: numbers.decimal_bytes(value) for value in BYTES} == BYTES
    assert [numbers.number(value) for value in (None, math.nan, math.inf)] == ["\N{EN DASH}", "nan", "inf"]
    assert numbers.number(1 / 3, 2) == "0.33" and numbers.milliseconds(None) == "\N{EN DASH}"
    assert numbers.seconds(1.4933) == "1.49 s"


@pytest.mark.parametrize("where", ["tooltips", "panel"])
def test_browser(where: str) -> None:
    functions = FUNCTIONS
    if where == "panel":
        functions = re.sub(r"^export ", "", (STATIC / "text.js").read_text(), flags=re.MULTILINE)
    tables = {"number": NUMBERS, "milliseconds": TIMES} | ({"bytes": BYTES} if where == "tooltips" else {})
    asked = json.dumps({name: list(table) for name, table in tables.items()})
    code = f"""{functions}
const found = {{}};
for (const [name, values] of Object.entries({asked})) found[name] = values.map((value) => eval(name)(value));
console.log(JSON.stringify(found));"""
    out = subprocess.run([NODE, "-e", code], capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(out.stdout) == {name: list(table.values()) for name, table in tables.items()}


def test_a_plain_table_has_columns_under_each_other() -> None:
    assert numbers.format_table([("1", "long cell"), ("22", "")], ("a", "b")) == "a   b\n1   long cell\n22"
