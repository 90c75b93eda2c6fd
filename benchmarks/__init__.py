"""Speed measurements and studies, each against a named baseline in the same run."""
