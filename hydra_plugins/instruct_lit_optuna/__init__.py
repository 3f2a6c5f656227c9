"""Hydra looks for plugins in packages of this name; importing it imports nothing heavy."""
