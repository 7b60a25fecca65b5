"""How Python writes its operators: the functions of the module ``operator`` and their symbols."""

from __future__ import annotations

import operator
from collections.abc import Mapping


def _operators(symbols: Mapping[str, str]) -> Mapping[object, str]:
    return {getattr(operator, name): symbol for name, symbol in symbols.items()}


INFIX = _operators(
    {
        "add": "+",
        "sub": "-",
        "mul": "*",
        "truediv": "/",
        "floordiv": "//",
        "mod": "%",
        "pow": "**",
        "matmul": "@",
        "and_": "&",
        "or_": "|",
        "xor": "^",
        "lshift": "<<",
        "rshift": ">>",
        "eq": "==",
        "ne": "!=",
        "lt": "<",
        "le": "<=",
        "gt": ">",
        "ge": ">=",
    }
)
AUGMENTED = _operators(
    {
        "iadd": "+=",
        "isub": "-=",
        "imul": "*=",
        "itruediv": "/=",
        "ifloordiv": "//=",
        "imod": "%=",
        "ipow": "**=",
        "imatmul": "@=",
        "iand": "&=",
        "ior": "|=",
        "ixor": "^=",
    }
)
PREFIX: Mapping[object, str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}
