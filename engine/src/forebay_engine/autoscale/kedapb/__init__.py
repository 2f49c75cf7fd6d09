"""KEDA's contract of external scalers; made by `engine/protos/generate.py`."""
