"""instruct-lit: teach a GPT to follow instructions."""

__version__ = "0.1.0"
