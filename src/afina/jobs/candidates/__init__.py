"""The search of `afina optimize`: which candidates are tried, how each is made, exported and judged."""
