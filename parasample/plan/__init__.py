"""Plans as data: scheduler tables, update rules, windows. Standard library only."""
