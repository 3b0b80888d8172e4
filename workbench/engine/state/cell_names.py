"""What a training cell takes from elsewhere: names of ``%%dist`` cells or ``%dist_push``, and local modules. Kept with
the run, so that its spec repeats it in a new session.

``names.json`` has, in the order in which they are restored, a source (or import) or a plain value for each name;
``modules/`` has copies of the modules' files. What cannot be kept is named.
"""

from __future__ import annotations

import ast
import inspect
import json
import linecache
import shutil
import symtable
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from workbench.core.user_code.user_modules import imported_by
from workbench.engine.base.tensor import is_array, is_tensor
from workbench.engine.base.workload import TakenNames
from workbench.engine.state.plain_state import NotPlainError, from_plain, to_plain
from workbench.rundir.directory import CELL_FILE, MODULES_DIR, NAMES_FILE

#: most bytes of one value, source or module that are kept, and most elements of an array
MOST_BYTES = 2**20
MOST_ELEMENTS = 2**16
_COMPOUND = (ast.For, ast.While, ast.With, ast.If, ast.Try)


def names_from_elsewhere(source: str) -> set[str]:
    """Global names that ``source`` uses and does not define before: its own, and builtins, are not told apart."""
    defined: set[str] = set()
    needed: set[str] = set()
    later: set[str] = set()  # used in the body of a function, which runs when all is defined
    for statement in ast.parse(source).body:
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        own = {each.get_name() for each in table.get_symbols() if each.is_assigned() or each.is_imported()}
        used = {each.get_name() for each in table.get_symbols() if each.is_referenced()}
        needed |= used - defined - (own if isinstance(statement, _COMPOUND) else set())
        defined |= own
        later |= set(_globals_of_functions(table))
    return needed | later - defined


def _globals_of_functions(table: symtable.SymbolTable) -> Iterator[str]:
    for child in table.get_children():
        yield from (each.get_name() for each in child.get_symbols() if each.is_global() and each.is_referenced())
        yield from _globals_of_functions(child)


@dataclass
class CellNames:
    """Names of ``namespace`` that a cell uses: how each is made again (``kept``), and which cannot (``missing``)."""

    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, source: str, namespace: Mapping[str, Any], given: Collection[str]) -> CellNames:
        """Those that the cell ``source`` uses, without the names that every cell is ``given``."""
        found = cls()
        found._keep_all(source, namespace, set(given))
        return found

    def _keep_all(self, source: str, namespace: Mapping[str, Any], seen: set[str]) -> None:
        for name in sorted(names_from_elsewhere(source) & namespace.keys() - seen):
            seen.add(name)
            made = _made_again(name, namespace[name])
            if made is None:
                self.missing.append(name)
                continue
            if "source" in made:  # first what it needs itself
                self._keep_all(made["source"], namespace, seen)
            self.kept[name] = made

    def sources(self) -> str:
        """Everything that is restored by running or importing it, as source."""
        return "\n".join(each["source"] for each in self.kept.values() if "source" in each)


def _made_again(name: str, value: Any) -> dict[str, Any] | None:
    """How ``value`` is made again under ``name``; None when nobody knows."""
    if isinstance(value, ModuleType):
        return {"source": f"import {value.__name__} as {name}"}
    if isinstance(value, type | FunctionType):
        module, attribute = value.__module__, value.__qualname__
        if module != "__main__" and getattr(sys.modules.get(module), attribute, None) is value:
            return {"source": f"from {module} import {attribute} as {name}"}
        source = _source_of(name, value)
        return None if source is None else {"source": source}
    return _plain(value)


def _plain(value: Any) -> dict[str, Any] | None:
    size = value.numel() if is_tensor(value) else value.size if is_array(value) else 0
    if size > MOST_ELEMENTS or (is_tensor(value) and value.requires_grad):
        return None
    try:
        plain = to_plain(value)
    except (NotPlainError, TypeError, RecursionError):
        return None
    return {"value": plain} if len(json.dumps(plain)) <= MOST_BYTES else None


def _source_of(name: str, value: type | FunctionType) -> str | None:
    """The statement of a cell that made a function or class, with one that gives it ``name`` if it has another."""
    code = [each.__code__ for each in _functions_of(value)]
    files = [code[0].co_filename] if code else [key for key in reversed(list(linecache.cache)) if _is_cell(key)]
    for file in files:
        text = "".join(linecache.getlines(file))
        try:
            statements = ast.parse(text).body
        except SyntaxError:
            continue
        for statement in reversed(statements):
            if not _makes(statement, value, [each.co_firstlineno for each in code]):
                continue
            source = ast.unparse(statement)
            return (
                source
                if name == value.__name__ or isinstance(statement, ast.Assign)
                else (f"{source}\n{name} = {value.__name__}")
            )
    return None


def _functions_of(value: type | FunctionType) -> list[FunctionType]:
    if isinstance(value, FunctionType):
        return [inspect.unwrap(value)]
    own = [each for each in vars(value).values() if isinstance(each, FunctionType)]
    return [each for each in own if _is_cell(each.__code__.co_filename)]  # not those that a dataclass is given


def _is_cell(file: str) -> bool:
    return file in linecache.cache and not Path(file).exists()


def _makes(statement: ast.stmt, value: type | FunctionType, lines: list[int]) -> bool:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        first = min([statement.lineno, *(each.lineno for each in statement.decorator_list)])
        matches = statement.name == value.__name__
    else:
        first = statement.lineno
        matches = isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Lambda)
    return matches and all(first <= line <= (statement.end_lineno or first) for line in lines)


def keep(run: Path, source: str, names: TakenNames | None) -> tuple[list[str], list[str]]:
    """Write what the cell ``source`` took from elsewhere into the run directory, unless it is there (``names`` None).

    Returns what could not be kept, and the modules that are not those that the run was made with.
    """
    missing = list(names.missing) if names is not None else []
    if names is not None and names.kept:
        (run / NAMES_FILE).write_text(json.dumps(names.kept, indent=1), encoding="utf-8")
    changed = []
    for name, file in imported_by(f"{source}\n{names.sources() if names is not None else ''}").items():
        place = run / MODULES_DIR / Path(*name.split("."))
        place = place / "__init__.py" if Path(file).name == "__init__.py" else place.with_suffix(".py")
        if not Path(file).is_file() or Path(file).stat().st_size > MOST_BYTES:
            missing.append(f"module {name}")
        elif place != Path(file):
            if place.exists() and place.read_bytes() != Path(file).read_bytes():
                changed.append(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    return missing, changed


def keep_for(run: str) -> list[str]:
    """On a rank: keep in the run directory ``run`` what its cell takes from this rank's namespace, before it trains.

    Returns the names that could not be kept.
    """
    path = Path(run)
    source = (path / CELL_FILE).read_text(encoding="utf-8")
    return keep(path, source, CellNames.of(source, defined_on_rank(), ()))[0]


def defined_on_rank() -> dict[str, Any]:
    """What cells defined in the engine's IPython shell, and what was pushed; empty without a shell.

    With the modules that cells are given, such as torch: imported by a cell as well, they cannot be told apart.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is None:
        return {}
    hidden = shell.user_ns_hidden
    return {
        name: value
        for name, value in shell.user_ns.items()
        if name not in hidden or hidden[name] is not value or isinstance(value, ModuleType)
    }


def restore(run: Path, namespace: dict[str, Any]) -> bool:
    """Make the names in ``namespace`` that the run directory keeps; whether it keeps any. Kept modules can be imported
    from then on, after those of the same name that are installed or lie in the working directory."""
    modules = str(run / MODULES_DIR)
    if (run / MODULES_DIR).is_dir() and modules not in sys.path:
        sys.path.append(modules)
    file = run / NAMES_FILE
    if not file.is_file():
        return False
    for name, made in json.loads(file.read_text(encoding="utf-8")).items():
        if "source" in made:
            exec(compile(made["source"], str(file), "exec"), namespace)
        else:
            namespace[name] = from_plain(made["value"])
    return True
