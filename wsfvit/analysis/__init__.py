"""Complexity, class activation maps, training curves, and what this installation is."""

from wsfvit.analysis.flop_counter import Complexity, count_complexity
from wsfvit.analysis.flop_rules import Cost, register_flop_rule

__all__ = ["Complexity", "Cost", "count_complexity", "register_flop_rule"]
