"""Readers of public demonstration formats: each yields `Source` episodes; `formats.read` finds the right one."""
