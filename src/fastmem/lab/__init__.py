"""Experiments: tasks, scores and statistics, and the code that runs, searches and reports them."""
