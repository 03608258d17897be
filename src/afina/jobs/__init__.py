"""The jobs: they put the parts below in order. Each is a function, a command, and a name in `afina`."""
