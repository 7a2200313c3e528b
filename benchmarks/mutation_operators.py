"""The faults that `mutants.py` makes: operators of cosmic-ray, and own ones on its base class.

Left out, because they break at once or change nothing: removed decorators, replaced exception
types, operators that no one confuses (`+` for `<<`).
"""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from cosmic_ray.operators.number_replacer import NumberReplacer  # pyright: ignore[reportMissingImports]
from cosmic_ray.operators.operator import Operator  # pyright: ignore[reportMissingImports]
from cosmic_ray.operators.provider import OperatorProvider  # pyright: ignore[reportMissingImports]

COMPARISONS = (
    "Lt_LtE",
    "LtE_Lt",
    "Gt_GtE",
    "GtE_Gt",
    "Eq_NotEq",
    "NotEq_Eq",
    "Is_IsNot",
    "IsNot_Is",
)
TAKEN = (
    *("ReplaceComparisonOperator_" + change for change in COMPARISONS),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "AddNot"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
)
ARITHMETIC = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul")

MESSAGES = {"print", "say", "tell", "warn", "warning", "log", "info", "debug", "report"}
MESSAGES |= {"text", "legend", "set_title", "set_xlabel", "set_ylabel"}
# Keywords that only matter for messages or for what Python checks.
UNSEEN = {"strict", "stacklevel", "flush", "encoding", "help", "description", "metavar", "match"}
# What annotates types, and what draws.
UNTESTED = {"Literal", "Annotated", "axes", "axis", "figure", "gr", "plt"}
OTHER_NAME = {"sum": "mean", "min": "max", "any": "all", "argmax": "argmin", "floor": "ceil"}
OTHER_NAME |= {"minimum": "maximum", "zeros": "ones", "zeros_like": "ones_like"}
OTHER_NAME |= {"softmax": "log_softmax", "psum": "pmean", "avg_pool": "max_pool"}
OTHER_NAME |= {other: name for name, other in OTHER_NAME.items()}
ALSO_BUILTIN = {"min", "max", "any", "all"}
LIBRARIES = {"jax", "jnp", "lax", "math", "nn", "np", "optax"}
KEPT = {"name", "atom", "atom_expr"}
CONVERSIONS = {"array", "asarray", "ascontiguousarray", "dtype"}
TEXTS = {"string", "strings", "fstring"}
PATHS = re.compile(r"dir|file|folder|parent|path|root|\b(new|out|where)\b", re.IGNORECASE)
TYPED = {"isinstance", "issubclass", "getattr", "hasattr", "setattr", "super", "type"}


def callee(trailer) -> str:
    """Returns the name that the parentheses of a call follow: `mean` in `jnp.mean(x)`."""
    return trailer.get_previous_leaf().value


def is_call(node) -> bool:
    """Returns True for the parentheses of a call, with their arguments."""
    return node.type == "trailer" and node.children[0].value == "("


def arguments(trailer) -> list:
    """Returns the nodes of a call's arguments."""
    inside = trailer.children[1]
    return inside.children[::2] if inside.type == "arglist" else trailer.children[1:-1]


def matters(leaf) -> bool:
    """Returns False for annotations, messages, static checks and the layout of figures."""
    for node, parent in itertools.pairwise(_ancestors(leaf)):
        kind, before = parent.type, node.get_previous_sibling()
        if kind in ("raise_stmt", "assert_stmt", "fstring", "fstring_expr", "decorator", "tfpdef"):
            return False
        if kind == "annassign" and node is parent.children[1]:
            return False
        if kind == "funcdef" and parent.name.value in ("__repr__", "__str__"):
            return False
        if kind == "funcdef" and before is not None and before.get_code().strip() == "->":
            return False
        if kind == "argument" and parent.children[0].get_code().strip() in UNSEEN:
            return False
        if kind == "if_stmt" and re.search("TYPE_CHECKING|__name__", parent.children[1].get_code()):
            return False
        if kind in ("atom_expr", "power"):
            if parent.children[0].get_code().strip() in UNTESTED:
                return False
            called = [callee(child) for child in parent.children if is_call(child)]
            if any(n in MESSAGES or n.endswith(("Error", "Warning")) for n in called):
                return False
    return True


def _ancestors(node) -> Iterator:
    while node is not None:
        yield node
        node = node.parent


class OwnOperator(Operator):
    """What all operators below share: one position for each thing that `targets` lists."""

    def targets(self, node) -> list:
        raise NotImplementedError

    def mutation_positions(self, node) -> Any:
        return [(target.start_pos, target.end_pos) for target in self.targets(node)]

    @classmethod
    def examples(cls) -> Any:
        return ()


class Arithmetic(Operator):
    """An arithmetic operator of cosmic-ray, away from strings, paths and signatures."""

    def __init__(self, change: str):
        provider: Any = OperatorProvider()
        self.replacement = provider[f"ReplaceBinaryOperator_{change}"]()

    def mutation_positions(self, node) -> Any:
        if node.type == "operator" and node.parent.type in ("arith_expr", "term", "power"):
            texts = TEXTS.intersection(child.type for child in node.parent.children)
            paths = node.value == "/" and PATHS.search(node.parent.get_code())
            if not texts and not paths:
                yield from self.replacement.mutation_positions(node)

    def mutate(self, node, index) -> Any:
        return self.replacement.mutate(node, index)

    @classmethod
    def examples(cls) -> Any:
        return ()


class NudgeInteger(NumberReplacer):
    """An integer plus or minus 1."""

    def mutation_positions(self, node) -> Any:
        if node.type == "number" and node.value.isdigit():
            yield from super().mutation_positions(node)

    def mutate(self, node, index) -> Any:
        new = super().mutate(node, index)
        new.value, new.prefix = new.value.strip(), node.prefix
        return new


class ScaleFloat(OwnOperator):
    """A float 10 % larger: 0.9 becomes 0.99."""

    def targets(self, node):
        fits = node.type == "number" and re.fullmatch(r"[\d._]+(e-?\d+)?", node.value)
        return [node] if fits and not node.value.isdigit() and float(node.value) else []

    def mutate(self, node, index) -> Any:
        node.value = f"{float(node.value) * 1.1:.6g}"
        return node


class DropKeyword(OwnOperator):
    """A call without one of its keyword arguments."""

    def targets(self, node):
        found = arguments(node) if is_call(node) else []
        named = [argument for argument in found if argument.type == "argument"]
        return [argument for argument in named if argument.children[1].get_code().strip() == "="]

    def mutate(self, node, index) -> Any:
        target, inside = self.targets(node)[index], node.children[1]
        if inside is target:
            del node.children[1]
        else:
            at = inside.children.index(target)
            last = at + 1 >= len(inside.children)
            del inside.children[at - last : at - last + 2]
        return node


class SwapArguments(OwnOperator):
    """A call with two neighbouring positional arguments of one kind swapped."""

    def targets(self, node):
        if not is_call(node) or callee(node) in TYPED:
            return []
        return [first for first, second in self._pairs(node)]

    def _pairs(self, node) -> list[tuple]:
        return [
            (first, second)
            for first, second in itertools.pairwise(arguments(node))
            if first.type == second.type != "argument"
            and first.get_code().strip() != second.get_code().strip()
        ]

    def mutate(self, node, index) -> Any:
        first, second = self._pairs(node)[index]
        leaves = first.get_first_leaf(), second.get_first_leaf()
        leaves[0].prefix, leaves[1].prefix = leaves[1].prefix, leaves[0].prefix
        inside = node.children[1].children
        at = inside.index(first)
        inside[at], inside[at + 2] = second, first
        return node


class KeepArgument(OwnOperator):
    """A library's function replaced by its first argument: `fold_in(key, step)` by `key`."""

    def targets(self, node):
        if node.type not in ("atom_expr", "power") or node.parent.type == "simple_stmt":
            return []
        call, library = node.children[-1], node.children[0].get_code().strip()
        if not is_call(call) or library not in LIBRARIES or callee(call) in CONVERSIONS:
            return []
        return [node] if arguments(call)[:1] and self._kept(node).type in KEPT else []

    def _kept(self, node):
        return arguments(node.children[-1])[0]

    def mutate(self, node, index) -> Any:
        kept = self._kept(node)
        kept.get_first_leaf().prefix = node.get_first_leaf().prefix
        return kept


class OmitCall(OwnOperator):
    """A statement that only calls something, left out."""

    def targets(self, node):
        call = node.children[0] if node.type == "simple_stmt" else None
        if call is None or call.type != "atom_expr" or not is_call(call.children[-1]):
            return []
        return [] if callee(call.children[-1]) == "__init__" else [call]

    def mutate(self, node, index) -> Any:
        first = node.get_first_leaf()
        first.value = "pass"
        node.children[0] = first
        return node


class SwapName(OwnOperator):
    """A function for its sibling: sum and mean, min and max, any and all."""

    def targets(self, node):
        if node.type != "name" or node.value not in OTHER_NAME:
            return []
        before, after = node.get_previous_leaf(), node.get_next_leaf()
        attribute = before is not None and before.value == "."
        builtin = node.value in ALSO_BUILTIN and after is not None and after.value == "("
        return [node] if attribute or builtin else []

    def mutate(self, node, index) -> Any:
        node.value = OTHER_NAME[node.value]
        return node


class SwapChoice(OwnOperator):
    """A string for the next choice of the `Literal` that it belongs to."""

    def __init__(self, choices: dict[str, str]):
        self.choices = choices

    def targets(self, node):
        if node.type != "string" or not node.value.startswith(("'", '"')):
            return []
        return [node] if ast.literal_eval(node.value) in self.choices else []

    def mutate(self, node, index) -> Any:
        node.value = f'"{self.choices[ast.literal_eval(node.value)]}"'
        return node


def literal_choices(sources: Iterable[str]) -> dict[str, str]:
    """Returns, for each string in a `Literal` of two or more strings, the one that follows it."""
    found = {}
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(text)) for text in sources):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            group = [value.value for value in values if isinstance(value, ast.Constant)]
            if all(isinstance(value, str) for value in group):
                found |= dict(zip(group, group[1:] + group[:1], strict=True))
    return found


def operators(choices: dict[str, str]) -> dict[str, Any]:
    """Returns all operators by name."""
    provider: Any = OperatorProvider()
    found = {name: provider[name]() for name in TAKEN}
    found |= {change: Arithmetic(change) for change in ARITHMETIC}
    own = (NudgeInteger, ScaleFloat, DropKeyword, SwapArguments, KeepArgument, OmitCall, SwapName)
    found |= {kind.__name__: kind() for kind in own}
    return found | {"SwapChoice": SwapChoice(choices)}
