"""The HTTP front end: parse, call the gateway, render. No policy."""
