"""Faults: what is left of a run that is killed, stopped, damaged or raced, or whose disk is full."""
