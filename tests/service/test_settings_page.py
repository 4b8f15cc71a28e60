"""docs/settings.md lists every setting as the code has it. To write it anew:

python tests/service/test_settings_page.py
"""

from pathlib import Path
from typing import Any

import pytest

from ddaebm.service.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
COMMAND = "python tests/service/test_settings_page.py"
HEAD = """\
# Settings

Made from `service/settings.py`. A flag of `ddaebm serve` beats the environment, which beats `.env` in the working
directory, which beats the default. `ddaebm serve --print-settings` shows what is in force.

| setting | variable | takes | default | what it is |
|---|---|---|---|---|
"""
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "nothing"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def takes(schema: dict[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema."""
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(takes(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return "texts, separated by commas"
    bounds = [f"{sign} {schema[name]}" for name, sign in BOUNDS.items() if name in schema]
    return ", ".join([TYPES.get(schema.get("type", ""), "JSON"), *bounds])


def page() -> str:
    prefix = Settings.model_config["env_prefix"]
    rows = []
    for name, schema in Settings.model_json_schema()["properties"].items():
        default = Settings.model_fields[name].default
        default = ",".join(default) if isinstance(default, tuple) else default
        shown = "nothing" if default is None else f"`{default}`"
        cells = [f"`{name}`", f"`{prefix}{name.upper()}`", takes(schema), shown, schema.get("description", "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return HEAD + "".join(rows)


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == page(), f"docs/settings.md is out of date; {COMMAND} writes it anew"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": ["auto", "cpu"]}, "`auto`, `cpu`"),
        ({"type": "integer", "minimum": 0, "maximum": 65535}, "whole number, ≥ 0, ≤ 65535"),
        ({"type": "number", "exclusiveMinimum": 0}, "number, > 0"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or nothing"),
        ({"type": "array", "items": {"type": "string"}}, "texts, separated by commas"),
        ({}, "JSON"),
    ],
)
def test_what_a_setting_takes_in_words(schema: dict[str, Any], words: str) -> None:
    assert takes(schema) == words


if __name__ == "__main__":
    PAGE.write_text(page())
