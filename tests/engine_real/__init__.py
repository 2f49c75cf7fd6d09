"""The gateway in front of a real SGLang. `make engine-test`; docs/engine-test.md."""
