"""What ``scripts/chaos.py`` does to monai-mil: one way to break a run a file, each with its promises counted."""
