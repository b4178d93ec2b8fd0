"""The canonical form of a kernel's source: what formatting, comments and names do not change.

Kept: every operation, constant, annotation and decorator, in order, of the kernel and of every jit
helper it calls, transitively. Dropped: positions, comments, docstrings, the names of functions, of
their modules, of parameters (they count by position) and of locals (by first appearance).
"""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

# What a name that is no local one stands for.
Resolver = Callable[[str], Any]


class _Unknown:
    """A name without a value here: a builtin, or one that only Triton knows."""


UNKNOWN = _Unknown()


def kernel_digest(kernel: Any) -> str:
    """A hash of the canonical form of a @triton.jit function."""
    return hashlib.sha256(canonical_kernel(kernel).encode()).hexdigest()[:16]


def canonical_kernel(kernel: Any) -> str:
    """The canonical form of a @triton.jit function, its helpers' digests inside."""
    function = kernel.fn
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    scope = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    return canonical(tree.body[0], lambda name: scope.get(name, UNKNOWN))


def canonical(function: ast.AST, resolve: Resolver = lambda name: UNKNOWN) -> str:
    """The canonical form of a function's syntax tree."""
    return _Writer(local_names(function), resolve).write(function)


def local_names(function: ast.AST) -> dict[str, int]:
    """Parameters and assigned names of a function, numbered by first appearance."""
    names: dict[str, int] = {}
    for node in _in_order(function):
        if isinstance(node, ast.arg):
            names.setdefault(node.arg, len(names))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, len(names))
    return names


def _in_order(node: ast.AST) -> list[ast.AST]:
    nodes = [node]
    for child in ast.iter_child_nodes(node):
        nodes += _in_order(child)
    return nodes


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a body; a lone string is none, wherever it stands."""
    return [
        statement
        for statement in body
        if not (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
    ]


class _Writer:
    def __init__(self, local: dict[str, int], resolve: Resolver) -> None:
        self.local = local
        self.resolve = resolve

    def write(self, node: Any) -> str:
        if isinstance(node, list):
            return f"[{' '.join(self.write(each) for each in node)}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, ast.arg):
            return f"(arg {self.write(node.annotation)})"
        if isinstance(node, ast.Name | ast.Attribute):
            return self._reference(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        return self._plain(node)

    def _plain(self, node: ast.AST) -> str:
        fields = []
        for field, value in ast.iter_fields(node):
            if field in ("ctx", "kind", "type_comment", "type_ignores", "type_params", "returns"):
                continue
            if field == "name" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if field == "body" and isinstance(value, list):
                value = without_docstring(value)
            # Versions of Python differ in what they leave out.
            if value is not None and value != []:
                fields.append(f"{field}={self.write(value)}")
        return f"({type(node).__name__} {' '.join(fields)})"

    def _reference(self, node: ast.Name | ast.Attribute) -> str:
        """A local by its number, a jit helper by its digest, a module by its own name."""
        if isinstance(node, ast.Name) and node.id in self.local:
            return f"v{self.local[node.id]}"
        value = self._value(node)
        if _is_helper(value):
            return f"jit:{kernel_digest(value)}"
        if isinstance(node, ast.Name):
            return _global(node.id, value)
        return f"{self.write(node.value)}.{node.attr}"

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return UNKNOWN if node.id in self.local else self.resolve(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value)
            return getattr(owner, node.attr, UNKNOWN) if isinstance(owner, ModuleType) else UNKNOWN
        return UNKNOWN

    def _call(self, node: ast.Call) -> str:
        """A helper's arguments count by position, however they are passed."""
        helper = self._value(node.func)
        starred = any(isinstance(each, ast.Starred) for each in node.args)
        if not _is_helper(helper) or starred or any(each.arg is None for each in node.keywords):
            return self._plain(node)
        keywords = {each.arg: each.value for each in node.keywords}
        bound = inspect.signature(helper.fn).bind(*node.args, **keywords)
        arguments = {name: self.write(value) for name, value in bound.arguments.items()}
        order = list(inspect.signature(helper.fn).parameters)
        written = [f"{order.index(name)}:{text}" for name, text in arguments.items()]
        return f"(call {self.write(node.func)} {' '.join(written)})"


def _is_helper(value: Any) -> bool:
    """Whether it is a @triton.jit function of ours: Triton's own count by name."""
    function = getattr(value, "fn", None)
    module = getattr(function, "__module__", None) or ""
    return inspect.isfunction(function) and module.split(".")[0] != "triton"


def _global(name: str, value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, bool | int | float | str):
        return repr(value)
    constant = getattr(value, "value", UNKNOWN)
    if type(value).__name__ == "constexpr":
        return f"constexpr:{constant!r}"
    return name
