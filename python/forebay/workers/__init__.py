"""Several processes that serve one address: a supervisor and its workers.

The supervisor serves no request. It starts the workers, starts those again that die, ends them, and
sums up their figures.
"""
