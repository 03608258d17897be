"""From a limit to a plan: units of axes, ranks of layers, precisions and bits, for one technique at a time."""
