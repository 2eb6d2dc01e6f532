"""Rewards -> advantages -> a clipped optimizer step, and the identities that are checked before the first one."""
