"""Traits of a path that the middleware needs before routing. Each route declares its own with `traits`."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True)
class Traits:
    public: bool = False  # needs no API key, and refusals are not counted as rejected work
    probe: bool = False  # requested all the time; logged only if it fails
    uploads: bool = False  # takes bodies up to the limit of the settings; others take small ones


PLAIN, PUBLIC, UPLOADS = Traits(), Traits(public=True), Traits(uploads=True)
PROBE = Traits(public=True, probe=True)  # probes and scrapes have no key
_ATTRIBUTE = "ddaebm_traits"


def traits(value: Traits) -> Callable[[Endpoint], Endpoint]:
    """Decorator that gives an endpoint its traits; place it below the route decorator."""

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ATTRIBUTE, value)
        return endpoint

    return mark


class Paths:
    """Traits of every path, collected from the routes.

    Args:
        routes: our own routes.
        public: paths of FastAPI's pages.
    """

    def __init__(self, routes: Iterable[BaseRoute], public: Iterable[str]) -> None:
        self._exact = dict.fromkeys(public, PUBLIC)
        self._patterns: list[tuple[re.Pattern[str], Traits]] = []
        for route in routes:
            assert isinstance(route, APIRoute)
            value: Traits = getattr(route.endpoint, _ATTRIBUTE, PLAIN)
            if "{" not in route.path:
                self._exact[route.path] = value
            elif value != PLAIN:
                self._patterns.append((route.path_regex, value))

    def of(self, path: str) -> Traits:
        if path in self._exact:
            return self._exact[path]
        return next((value for pattern, value in self._patterns if pattern.match(path)), PLAIN)
