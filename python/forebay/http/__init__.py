"""The HTTP front end: parse, call the gateway, render. No policy."""

from forebay.http.app import create_app

__all__ = ["create_app"]
