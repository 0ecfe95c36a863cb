"""Measurements of localdelay beside the scheme that it grew out of. Scripts, no part of the package."""
