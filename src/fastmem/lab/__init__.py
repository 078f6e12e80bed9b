"""The experiments: tasks, scores, statistics, and what runs, searches and reports them."""
