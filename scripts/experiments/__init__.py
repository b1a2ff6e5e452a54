"""Experiments whose tables stand in the bundles' docs; each module has ``run(folder) -> str``, a Markdown table."""
