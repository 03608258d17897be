"""The contracts of Afina's parts as functions that check them: for those who write a part of their own."""
