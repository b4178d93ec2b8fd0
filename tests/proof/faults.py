"""Faults planted in a syntax tree: found by what a piece of code does, not by how it is written.

A fault names a function and quotes Python. In the quote a name that is local in the function stands
for any local one, the same name for the same one; all other names, constants and operations are
themselves. Neither renaming a local or a parameter nor formatting nor another file breaks a fault.
"""

import ast
import builtins
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.proof.syntax import local_names

Binding = dict[str, str]


@dataclass(frozen=True)
class Fault:
    """One edit: what it breaks, where, and the code before and after.

    function: qualified name ("Fused.backward") in any module of the operator's folder.
    old: an expression or statements, found once in the function. new: what takes their place.
    given: more code of the function, quoted to say which local names in `new` are meant.
    place: (3, 4) is the third of exactly four places where `old` is found.
    """

    what: str
    function: str
    old: str
    new: str
    given: tuple[str, ...] = ()
    place: tuple[int, int] = (1, 1)


class FaultError(LookupError):
    """The fault does not fit the present source."""


def planted(fault: Fault, folder: Path) -> tuple[Path, str]:
    """(the module to change, its text with the fault planted); comments and formatting are lost.

    Raises:
        FaultError: the function or the code is not there exactly as often as the fault says.
    """
    path, module, function = _fitting(fault, folder)
    _edit(fault, function, _global_names(module))
    return path, ast.unparse(ast.fix_missing_locations(module)) + "\n"


def function_in(path: Path, text: str, name: str) -> ast.FunctionDef:
    """A function's tree by its qualified name."""
    return dict(_functions(ast.parse(text, str(path))))[name]


def _fitting(fault: Fault, folder: Path) -> tuple[Path, ast.Module, ast.FunctionDef]:
    """The one function of that name in which `old` is found as often as the fault says."""
    counts: list[int] = []
    fitting = []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        if f"def {fault.function.split('.')[-1]}(" not in text:
            continue
        module = ast.parse(text, str(path))
        for name, function in _functions(module):
            if name == fault.function:
                counts.append(len(find(fault.old, function)))
                if counts[-1] == fault.place[1]:
                    fitting.append((path, module, function))
    if len(fitting) != 1:
        found = " and ".join(map(str, counts)) or "no function of that name:"
        raise FaultError(
            f"{fault.what}: in {fault.function} ({folder}) found {found} times, "
            f"not {fault.place[1]}: {fault.old}"
        )
    return fitting[0]


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield prefix + child.name, child
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")


def _global_names(module: ast.Module) -> set[str]:
    names = set(dir(builtins))
    for node in module.body:
        for part in ast.walk(node):
            if isinstance(part, ast.alias):
                names.add((part.asname or part.name).split(".")[0])
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names.add(part.id)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


@dataclass(frozen=True)
class Match:
    """Where a quote was found: one expression, or `count` statements of `body` from `start`."""

    binding: Binding
    node: ast.expr | None = None
    body: list[ast.stmt] | None = None
    start: int = 0
    count: int = 0


def _edit(fault: Fault, function: ast.FunctionDef, known: set[str]) -> None:
    match = find(fault.old, function)[fault.place[0] - 1]
    binding = _with_given(fault, function, match.binding)
    statements = _renamed(fault, binding, known, function)
    if match.node is not None:
        value = statements[0]
        if len(statements) != 1 or not isinstance(value, ast.Expr):
            raise FaultError(f"{fault.what}: an expression can only become one: {fault.new}")
        _Exchange(match.node, value.value).visit(function)
        return
    assert match.body is not None
    match.body[match.start : match.start + match.count] = statements or [ast.Pass()]


class _Exchange(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old = old
        self.new = new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _with_given(fault: Fault, function: ast.FunctionDef, binding: Binding) -> Binding:
    """The binding with what the given quotes add, if they leave no choice for names in `new`."""
    needed = {node.id for node in ast.walk(ast.parse(fault.new)) if isinstance(node, ast.Name)}
    for quote in fault.given:
        extended = [match.binding for match in find(quote, function, binding)]
        readings = {tuple((name, each.get(name)) for name in sorted(needed)) for each in extended}
        if len(readings) != 1:
            raise FaultError(f"{fault.what}: {len(readings)} readings of the given {quote}")
        binding = extended[0]
    return binding


def _renamed(
    fault: Fault, binding: Binding, known: set[str], function: ast.FunctionDef
) -> list[ast.stmt]:
    """The replacement in the function's own names."""
    statements = copy.deepcopy(ast.parse(fault.new).body)
    names = [node for part in statements for node in ast.walk(part) if isinstance(node, ast.Name)]
    fresh = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    local = local_names(function)
    for node in names:
        if node.id in binding:
            node.id = binding[node.id]
        elif node.id in fresh and node.id in local:
            node.id = f"{node.id}_of_the_fault"
        elif node.id not in fresh and (node.id in local or node.id not in known):
            raise FaultError(f"{fault.what}: nothing quoted says what {node.id} is")
    return statements


def find(quote: str, function: ast.FunctionDef, binding: Binding | None = None) -> list[Match]:
    """Every place of a function where the quoted code stands, in order."""
    pattern = ast.parse(quote).body
    local = local_names(function)
    known = binding or {}
    if len(pattern) == 1 and isinstance(pattern[0], ast.Expr):
        wanted = pattern[0].value
        nodes = [node for node in _walk(function) if isinstance(node, ast.expr)]
        found = [(node, _matched(wanted, node, known, local)) for node in nodes]
        return [Match(bound, node=node) for node, bound in found if bound is not None]
    matches = []
    for body in _bodies(function):
        for start in range(len(body) - len(pattern) + 1):
            bound = _matched(pattern, body[start : start + len(pattern)], known, local)
            if bound is not None:
                matches.append(Match(bound, body=body, start=start, count=len(pattern)))
    return matches


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Depth first, in the order of the source."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)


def _bodies(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    for node in _walk(function):
        for field in ("body", "orelse"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                yield body


def _matched(pattern, node, binding: Binding, local: dict[str, int]) -> Binding | None:
    """The names' binding where the tree is the pattern's, or None."""
    if isinstance(pattern, list):
        if not isinstance(node, list) or len(pattern) != len(node):
            return None
        bound: Binding | None = binding
        for one, other in zip(pattern, node, strict=True):
            bound = _matched(one, other, bound, local)
            if bound is None:
                return None
        return bound
    if not isinstance(pattern, ast.AST):
        return binding if type(pattern) is type(node) and pattern == node else None
    if type(pattern) is not type(node):
        return None
    if isinstance(pattern, ast.Name):
        return _bound(pattern.id, node.id, binding, local)
    fields = [field for field in pattern._fields if field not in ("ctx", "kind", "type_comment")]
    return _matched(
        [getattr(pattern, field, None) for field in fields],
        [getattr(node, field, None) for field in fields],
        binding,
        local,
    )


def _bound(quoted: str, name: str, binding: Binding, local: dict[str, int]) -> Binding | None:
    if name not in local:
        return binding if quoted == name and quoted not in binding else None
    if quoted in binding:
        return binding if binding[quoted] == name else None
    return None if name in binding.values() else {**binding, quoted: name}
