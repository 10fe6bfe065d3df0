"""Rivals written in Python."""
