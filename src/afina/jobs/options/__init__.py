"""The options of every command, each declared once: one module per command, `shared` for what several have.

`declaration` says how an option is declared, and makes from it what Python, the command line, recipes and run folders
need. A new option of a command is a field of its class here, and its use in the job; nothing else.
"""
