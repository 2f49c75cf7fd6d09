"""Limits shared by several nodes, over Redis or Valkey."""

from forebay.limits.breaker import Breaker, State
from forebay.limits.syncer import Syncer

__all__ = ["Breaker", "State", "Syncer"]
