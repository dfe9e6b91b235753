"""Faults: what is left of a run after kills, full disks, races and signals."""
