"""The admin API, ``/admin/v1``: accounts, keys and limits, for holders of an admin key."""

from forebay.http.admin.operation import DatabaseSource
from forebay.http.admin.table import admin_routes

__all__ = ["DatabaseSource", "admin_routes"]
