"""Filters of list requests: a few fields, a few operators, and a clear refusal of the rest."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from wan_server.errors import InvalidRequest
from wan_server.routes.common import Filter
from wan_server.status import TaskStatus
from wan_server.submit import parse_time

Json = dict[str, Any]
#: field name -> how its value is read from a request
Fields = Mapping[str, Callable[[object], Any]]

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_LISTS: Final = {"in": True, "not_in": False}


def compile_filters(filters: Sequence[Filter] | None, fields: Fields) -> Callable[[Json], bool]:
    """A test for items that hold the fields' values. Raises InvalidRequest naming what is unknown."""
    tests = [_compile(item, fields) for item in filters or ()]
    return lambda values: all(test(values) for test in tests)


def read_status(value: object) -> TaskStatus:
    """A status by number or name. Raises InvalidRequest."""
    try:
        return TaskStatus[value.upper()] if isinstance(value, str) else TaskStatus(value)
    except (KeyError, ValueError):
        raise InvalidRequest(f"filters.status: {value!r} is not a status") from None


def read_text(value: object) -> str:
    """Raises InvalidRequest."""
    if not isinstance(value, str):
        raise InvalidRequest(f"filters.value: must be a string (got {value!r})")
    return value


def read_instant(value: object) -> float:
    """An ISO 8601 time as epoch seconds. Raises InvalidRequest, InvalidInput."""
    return parse_time(read_text(value), "filters.created_at")


def _compile(item: Filter, fields: Fields) -> Callable[[Json], bool]:
    if item.field not in fields:
        raise InvalidRequest(f"filters.field: {item.field!r} is not one of {', '.join(fields)}")
    name, read = item.field, fields[item.field]
    if item.operator in _LISTS:
        wanted = _LISTS[item.operator]
        if not isinstance(item.value, list):
            raise InvalidRequest(f"filters.value: must be a list for {item.operator}")
        choices = [read(value) for value in item.value]
        return lambda values: (values[name] in choices) is wanted
    if item.operator not in _OPERATORS:
        known = ", ".join([*_OPERATORS, *_LISTS])
        raise InvalidRequest(f"filters.operator: {item.operator!r} is not one of {known}")
    compare, bound = _OPERATORS[item.operator], read(item.value)
    return lambda values: compare(values[name], bound)
