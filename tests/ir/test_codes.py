"""Every code that the program can emit has its row in the one table, and on the page for users."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from morphir.ir.channels import Verdict
from morphir.ir.codes import CODES, suggestion_for
from morphir.ir.remarks import Remark
from morphir.morphisms.base import Morphism
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split

ROOT = Path(__file__).parent.parent.parent
SOURCES = [path for folder in ("morphir", "passes") for path in (ROOT / folder).rglob("*.py")]
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
FORWARDED = {"code", "kind", "codes"}
"""Names under which a code is passed on; where it comes from, it is a literal that is found there."""


def code_positions() -> dict[str, int]:
    """Function or class name to the position of its parameter ``code``, without self."""
    found: dict[str, int] = {"Code": -1}
    for tree in TREES.values():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg != "self"]
            elif isinstance(node, ast.ClassDef):
                names = [
                    part.target.id
                    for part in node.body
                    if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
                ]
            if "code" in names:
                found[node.name] = names.index("code")
    return found


def constants(tree: ast.Module) -> dict[str, str]:
    """The module's own names of strings."""
    return {
        target.id: part.value.value
        for part in tree.body
        if isinstance(part, ast.Assign)
        and isinstance(part.value, ast.Constant)
        and isinstance(part.value.value, str)
        for target in part.targets
        if isinstance(target, ast.Name)
    }


def literals(expression: ast.expr, names: dict[str, str]) -> Iterator[str | None]:
    """Yields every code that an expression can be; None where that cannot be read off."""
    if isinstance(expression, ast.Constant):
        yield from [expression.value] if expression.value else []
    elif isinstance(expression, ast.IfExp):
        yield from (*literals(expression.body, names), *literals(expression.orelse, names))
    elif isinstance(expression, ast.BoolOp):
        for value in expression.values:
            yield from literals(value, names)
    elif isinstance(expression, ast.Name) and expression.id in names:
        yield names[expression.id]
    elif isinstance(expression, (ast.Name, ast.Attribute)):
        name = expression.id if isinstance(expression, ast.Name) else expression.attr
        yield from [] if name in FORWARDED else [None]
    else:
        yield None


def emitted() -> Iterator[tuple[str, str | None]]:
    """Yields each place in the program that names a code, with the code."""
    positions = code_positions()
    for path, tree in TREES.items():
        names = constants(tree)
        assigned = [
            (part.targets[0], part.value)
            for part in ast.walk(tree)
            if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name)
        ]
        expressions = [value for target, value in assigned if target.id == "code"]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                at = positions.get(name, -1)
                expressions += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                if 0 <= at < len(node.args):
                    expressions.append(node.args[at])
            elif isinstance(node, ast.FunctionDef):
                defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                expressions += [value for arg, value in defaults if arg.arg == "code" and value is not None]
        for expression in expressions:
            for code in literals(expression, names):
                yield f"{path.relative_to(ROOT)}:{expression.lineno}", code


def test_every_code_that_is_emitted_has_its_row() -> None:
    found = dict[str, str]()
    for place, code in emitted():
        assert code is not None, f"{place}: write the code as a literal, or pass it on under the name 'code'"
        found.setdefault(code, place)
    found.update({kind.kind: str(kind) for kind in (Split, Prune)})
    # Other tests declare kinds of their own.
    own = {kind for kind in Morphism.__subclasses__() if kind.__module__.startswith("morphir.")}
    assert own == {Split, Prune}
    missing = {code: place for code, place in found.items() if code not in CODES}
    assert not missing, f"no row in morphir/ir/codes.py: {missing}"
    assert not CODES.keys() - found.keys(), "rows that nothing emits"


def test_the_search_sees_every_kind_of_place() -> None:
    found = {code for _, code in emitted()}
    assert {"same-position", "same-channel", "equal-chunks", "same-inner-index"} <= found
    assert {"model-input", "unknown-operator", "channel-norm", "literal", "opaque-module"} <= found
    assert {"does-not-follow", "no-learning-rule", "not-among-best", "dead-code"} <= found


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_each_row_is_complete(code: object) -> None:
    row = CODES[str(getattr(code, "name", ""))]
    assert row.meaning and not row.meaning.endswith(".")
    assert bool(row.suggestion) == (row.kind not in {"tie", "applied"}) or row.name == "other-is-better"


def test_verdicts_and_remarks_carry_the_suggestion() -> None:
    verdict = Verdict("frozen", "channel-pad", "padded", "pad")
    assert verdict.suggestion == suggestion_for("channel-pad") == verdict.to_json()["suggestion"]
    assert str(verdict) == f"frozen: padded [channel-pad] at %pad\n  hint: {verdict.suggestion}"
    assert (str(Verdict("exact")), Verdict("exact").suggestion) == ("exact", "")
    remark = Remark("refused", "does-not-follow", "no", "conv", 3, "view")
    assert remark.suggestion == suggestion_for("does-not-follow") == remark.to_json()["suggestion"]
    assert str(remark).startswith("refused conv[3]: no [does-not-follow] at %view\n  hint: ")


def rows(kind: str) -> list[str]:
    """The lines of one table of the page for users."""
    codes = [code for code in CODES.values() if code.kind == kind]
    heads = ["code", "meaning", *([] if kind in {"tie", "applied"} else ["what you could do"])]
    cells = [
        [f"`{code.name}`", code.meaning.replace("{node}", "the operator"), code.suggestion or "-"]
        for code in codes
    ]
    lines = [heads, ["---"] * len(heads), *(row[: len(heads)] for row in cells)]
    return [f"| {' | '.join(line)} |" for line in lines]


SECTIONS = {
    "## Frozen groups": "frozen",
    "## Groups that can only be pruned": "prune-only",
    "## Refused": "refused",
    "## Missed": "missed",
    "## Applied": "applied",
    "## Ties": "tie",
}


def test_the_page_says_what_the_table_says(request: pytest.FixtureRequest) -> None:
    page = ROOT / "docs" / "verdicts.md"
    lines: list[str] = []
    section, pending = "", False
    for line in page.read_text().splitlines():
        section, pending = (line, True) if line in SECTIONS else (section, pending)
        if not (section and line.startswith("|")):
            lines.append(line)
        elif pending:
            lines += rows(SECTIONS[section])
            pending = False
    text = "\n".join(lines) + "\n"
    assert all(section in lines for section in SECTIONS)
    if request.config.getoption("--update-golden"):
        page.write_text(text)
    assert page.read_text() == text, "docs/verdicts.md is behind the table; run pytest --update-golden"
