"""What is wrong with values from a file, in lines that name the key. No torch."""

from __future__ import annotations

from pydantic import ValidationError


def explain(error: ValidationError) -> list[str]:
    """One line for each wrong value."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "value_error":
            lines.append(item["msg"].removeprefix("Value error, "))
        elif item["type"] == "unexpected_keyword_argument":
            lines.append(f"{where}: unknown key")
        elif item["type"] == "missing":
            lines.append(f"{where}: is missing")
        else:
            lines.append(f"{where}: {item['msg']} (got {item['input']!r})")
    return lines
