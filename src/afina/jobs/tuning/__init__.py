"""The search of `afina tune`: what a trial runs, what it costs, where it runs, and what is told of it."""
