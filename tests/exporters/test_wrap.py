"""Line breaking: at brackets, one element a line, never inside a string."""

import ast

from exporters.source.wrap import WIDTH, wrap


def test_short_lines_stay() -> None:
    assert wrap("x = self.conv(x)", 8) == ["        x = self.conv(x)"]


def test_long_calls_break_at_the_last_outermost_bracket() -> None:
    line = f"self.layers = nn.Sequential({', '.join(['nn.Conv2d(3, 16, 3, padding=(1, 1))'] * 4)})"
    lines = wrap(line, 4)
    assert lines[0] == "    self.layers = nn.Sequential("
    assert lines[1:-1] == ["        nn.Conv2d(3, 16, 3, padding=(1, 1)),"] * 4
    assert lines[-1] == "    )"


def test_brackets_and_commas_in_strings_do_not_count() -> None:
    names = [f'"a, (b{number}"' for number in range(12)]
    lines = wrap(f"names = dict(first=[{', '.join(names)}], second={{1: ')'}})", 0)
    assert max(map(len, lines)) <= WIDTH
    assert ast.unparse(ast.parse("\n".join(lines))) == ast.unparse(
        ast.parse(f"names = dict(first=[{', '.join(names)}], second={{1: ')'}})")
    )


def test_a_line_without_brackets_stays_whole() -> None:
    line = "x = " + " + ".join(["value"] * 30)
    assert wrap(line, 0) == [line]
