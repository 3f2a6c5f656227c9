"""Speed and memory against peers; every figure in NOTES.md comes from a command of this package."""
