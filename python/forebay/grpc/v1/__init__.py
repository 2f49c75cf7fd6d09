"""Messages and services of `protos/forebay/v1`, made by `make protos`."""
