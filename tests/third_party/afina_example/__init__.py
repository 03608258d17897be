"""A package of its own that adds parts to Afina."""
