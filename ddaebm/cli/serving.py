"""`serve` and `key`: the HTTP service."""

import os
import signal
import sys
from typing import Annotated, Any

import typer

from ddaebm.cli.options import BUNDLE


def serve(
    bundle: Annotated[
        list[str] | None, typer.Option(help=f"{BUNDLE}; repeat for several, which clients choose by `model`")
    ] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on")] = None,
    print_settings: Annotated[bool, typer.Option(help="list every setting with its value and exit")] = False,
) -> None:
    """Serve bundles over HTTP; SIGHUP reloads them. Every setting is also an environment variable: DDAEBM_PORT, …"""
    from pydantic import ValidationError

    from ddaebm.service.settings import Settings, is_service_link

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server is ready for it; it would end this process
    flags: dict[str, Any] = {"bundle": bundle or None, "host": host, "port": port}
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"DDAEBM_{str(first['loc'][0]).upper()}: {first['msg']}") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f".env is not UTF-8 text ({error}); save it as UTF-8, or start elsewhere") from error
    linked = is_service_link(os.environ.get("DDAEBM_PORT", ""))  # then Kubernetes has set others, too
    for name in sorted(os.environ):
        if linked and name.startswith(("DDAEBM_PORT_", "DDAEBM_SERVICE_")):
            continue
        if name.startswith("DDAEBM_") and name.removeprefix("DDAEBM_").lower() not in Settings.model_fields:
            print(f"ddaebm: {name} is not a setting; see --print-settings", file=sys.stderr)
    if print_settings:
        for name, field in Settings.model_fields.items():
            value = getattr(settings, name)
            text = ",".join(value) if isinstance(value, tuple) else value
            print(f"DDAEBM_{name.upper()}={text}  # {field.description or ''}".rstrip(" #"))
        return

    from ddaebm.service.app import create_app
    from ddaebm.service.registry import load_engines
    from ddaebm.service.server import serve as run

    raise typer.Exit(run(create_app(settings, *load_engines(settings).values()), settings))


def key() -> None:
    """Make an API key: one line for the client, and one for the service, which needs only the hash."""
    from ddaebm.service.http.auth import make_key

    secret, hashed = make_key()
    print(f"Authorization: Bearer {secret}\nDDAEBM_API_KEYS={hashed}")
