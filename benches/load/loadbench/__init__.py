"""The parts of the whole-gateway load bench; ``benches/load/run.py`` puts them together."""
