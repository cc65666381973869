"""Measurements of Ringfence; not installed."""
