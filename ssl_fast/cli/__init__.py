"""The command line, a module a command: HELP, add_arguments(parser), and run(args), which gives the exit code.

torch, numpy and what needs them are imported inside the functions that use them: `ssl-fast --help` does without.
"""
