"""The command `visard`: a file for each command, which says what happens and leaves the work to the other packages.

`app` puts the commands together; `console` is what they share. Importing this package loads the SDK and nothing else
of ours: each command loads what it needs when it runs.
"""
