"""Speed beside its ceiling: what this machine, or another server on it, could do at best."""
