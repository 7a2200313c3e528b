"""The faults that `mutants.py` makes: operators of cosmic-ray, and own ones on its base class.

Removed decorators, replaced exception types and unlikely operators (`+` for `<<`) are left out:
they fail at once or change nothing.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any

from cosmic_ray.operators.operator import Operator  # pyright: ignore[reportMissingImports]
from cosmic_ray.operators.provider import OperatorProvider  # pyright: ignore[reportMissingImports]

TAKEN = {
    "ReplaceComparisonOperator_": "Lt_LtE LtE_Lt Gt_GtE GtE_Gt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is",
    "ReplaceBinaryOperator_": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul",
    "ReplaceUnaryOperator_Delete_": "Not USub",
    "Replace": "TrueWithFalse FalseWithTrue AndWithOr OrWithAnd",
    "": "ReplaceBreakWithContinue ReplaceContinueWithBreak AddNot ZeroIterationForLoop",
}
MESSAGES = re.compile(
    "print|say|warn(ing)?|log|info|debug|report|text|legend|set_.*|.*(Error|Warning)"
)
# Keywords that only matter for messages or for what Python checks.
UNSEEN = {"strict", "stacklevel", "flush", "encoding", "help", "description", "metavar", "match"}
# Names in annotations of types, and in drawing.
UNTESTED = {"Literal", "Annotated", "axes", "axis", "figure", "gr", "plt"}
PARTS = {"raise_stmt", "assert_stmt", "fstring", "fstring_expr", "decorator", "tfpdef"}
PATHS = re.compile(r"dir|file|folder|parent|path|root|\b(new|out|where)\b", re.IGNORECASE)
TYPED = {"isinstance", "issubclass", "getattr", "hasattr", "setattr", "super", "type"}


def code(node) -> str:
    """Returns the source of a node, without the space around it."""
    return node.get_code().strip()


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
    """Returns False for annotations, messages, static checks, paths and the layout of figures."""
    node, parent = leaf, leaf.parent
    if leaf.value in ("+", "-", "*", "/", "//", "%", "**"):
        is_text = any("string" in child.type for child in parent.children)
        is_path = leaf.value == "/" and PATHS.search(code(parent))
        if is_text or is_path or parent.type not in ("arith_expr", "term", "power", "factor"):
            return False
    while parent is not None:
        kind, before = parent.type, node.get_previous_sibling()
        if (
            kind in PARTS
            or (kind == "annassign" and node is parent.children[1])
            or (kind == "funcdef" and before is not None and code(before) == "->")
            or (kind == "argument" and code(parent.children[0]) in UNSEEN)
            or (kind == "if_stmt" and re.search("TYPE_CHECKING|__name__", code(parent.children[1])))
        ):
            return False
        if kind in ("atom_expr", "power"):
            called = [callee(child) for child in parent.children if is_call(child)]
            if code(parent.children[0]) in UNTESTED or any(map(MESSAGES.fullmatch, called)):
                return False
        node, parent = parent, parent.parent
    return True


class Change(Operator):
    """Calls `change(node, target)` for one of the targets that `find(node)` returns."""

    def __init__(self, find: Callable[[Any], list], change: Callable[[Any, Any], Any]):
        self.find, self.change = find, change

    def mutation_positions(self, node) -> Any:
        return [(target.start_pos, target.end_pos) for target in self.find(node)]

    def mutate(self, node, index) -> Any:
        return self.change(node, self.find(node)[index])

    @classmethod
    def examples(cls) -> Any:
        return ()


def numbers(node) -> list:
    """Returns the node if it is a number, except 0.0."""
    fits = node.type == "number" and re.fullmatch(r"[\d._]+(e-?\d+)?", node.value)
    return [node] if fits and (node.value.isdigit() or float(node.value)) else []


def nudge_number(node, _) -> Any:
    """Adds 1 to an integer, and 10 % to a float."""
    text = node.value
    node.value = str(int(text) + 1) if text.isdigit() else f"{float(text) * 1.1:.6g}"
    return node


def keywords(node) -> list:
    """Returns the keyword arguments of a call."""
    found = [each for each in (arguments(node) if is_call(node) else []) if each.type == "argument"]
    return [each for each in found if code(each.children[1]) == "="]


def drop_keyword(node, target) -> Any:
    """Removes a keyword argument, and the comma after or before it."""
    inside = target.parent.children
    at = inside.index(target)
    last = at + 1 >= len(inside)
    del inside[slice(1, 2) if inside is node.children else slice(at - last, at - last + 2)]
    return node


def neighbours(node) -> list:
    """Returns the positional arguments that another one of the same kind follows."""
    given = arguments(node) if is_call(node) and callee(node) not in TYPED else []
    return [
        first
        for first, second in itertools.pairwise(given)
        if first.type == second.type != "argument" and code(first) != code(second)
    ]


def swap_arguments(node, first) -> Any:
    """Swaps a positional argument with the next one."""
    inside = node.children[1].children
    at = inside.index(first)
    leaves = first.get_first_leaf(), inside[at + 2].get_first_leaf()
    leaves[0].prefix, leaves[1].prefix = leaves[1].prefix, leaves[0].prefix
    inside[at], inside[at + 2] = inside[at + 2], first
    return node


def call_statements(node) -> list:
    """Returns the call of a statement that only calls something."""
    call = node.children[0] if node.type == "simple_stmt" else None
    if call is None or call.type != "atom_expr" or not is_call(call.children[-1]):
        return []
    return [] if callee(call.children[-1]) == "__init__" else [call]


def omit_call(node, _) -> Any:
    """Replaces a statement by `pass`."""
    first = node.get_first_leaf()
    first.value = "pass"
    node.children[0] = first
    return node


def operators() -> dict[str, Any]:
    """Returns all operators by name."""
    provider: Any = OperatorProvider()
    names = [start + end for start, ends in TAKEN.items() for end in ends.split()]
    return {name: provider[name]() for name in names} | {
        "NudgeNumber": Change(numbers, nudge_number),
        "DropKeyword": Change(keywords, drop_keyword),
        "SwapArguments": Change(neighbours, swap_arguments),
        "OmitCall": Change(call_statements, omit_call),
    }
