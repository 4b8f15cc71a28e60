"""The tree in the docstring is the tree in the code."""

import re

from ddaebm.model import errors


def test_every_error_stands_in_the_docstring_under_its_parent() -> None:
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if not (match := re.match(r"([│├└─ ]*)(\w+Error)\b", line)):
            continue
        depth, name = len(match[1]), match[2]
        stack = [(d, n) for d, n in stack if d < depth]
        if stack:
            parents[name] = stack[-1][1]
        stack.append((depth, name))
    classes = {n: c for n, c in vars(errors).items() if isinstance(c, type) and n != "DdaebmError"}
    assert parents == {name: cls.__bases__[0].__name__ for name, cls in classes.items()}


def test_a_config_error_is_also_a_value_error() -> None:
    """pydantic and argument parsers convert a ValueError to their own error message."""
    assert issubclass(errors.ConfigError, ValueError)
