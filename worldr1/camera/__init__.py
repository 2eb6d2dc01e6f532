"""Prompt -> camera words -> path -> optical flow -> initial noise that moves with it."""
