"""What the commands do between options and printing, for the command line and for Python.

A work list in, results as files out; nothing here prints or knows an option's name.
"""
